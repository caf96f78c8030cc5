"""Entry point of ``sslfast``: finds the command, parses its options, turns errors into one line and an exit code."""

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

COMMANDS = {
    "demo": "pre-train, cache features, tune a head, export and report: the whole job on one data set",
    "pretrain": "train a backbone without labels",
    "extract": "run a backbone over a data set and store the features",
    "tune": "search a classifier head on stored features with TPE",
    "evaluate": "measure a backbone: k-NN, linear probes, clustering, dense probe",
    "export": "write backbone and head as one ONNX file",
    "predict": "classify images with an ONNX file",
    "report": "draw a run as one HTML page",
    "nas": "search the cells of a network, with or without labels, and train what was found",
    "study": "train the grid of a paper: label fractions, transfer, classes without labels",
    "data": "look for a data set, or download it",
    "bench": "time the kernels against their peers",
    "doctor": "show versions, devices and which backend every op uses",
}


FRAME = ("", "-h", "--help", "--version")
"""What stands in the place of a command and is answered here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (failed) or 2 (usage).

    A command is a module ``sslfast.cli.<name>`` with a dataclass ``Options`` (or a function ``options(words)`` that
    gives a type for these words) and a function ``run(options)``, so that ``sslfast --help`` and a mistyped command
    load nothing heavy.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name that is no UTF-8 is shown, not a crash
    words = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name not in (*COMMANDS, *FRAME):
        print(f"sslfast: unknown command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    debug = "--debug" in rest
    rest = [word for word in rest if word != "--debug"]
    try:
        code = _run(name, rest)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("sslfast: interrupted; the same command with --resume continues", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, say) has enough
        _drop_output()
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"sslfast {name}".rstrip() + f": {_one_line(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return getattr(error, "exit_code", 1)


def _run(name: str, words: list[str]) -> int:
    if name in ("", "-h", "--help"):
        print(_help())
        return 0 if name else 2
    if name == "--version":
        from importlib.metadata import version

        print(f"sslfast {version('sslfast')}")
        return 0
    import tyro

    module = importlib.import_module(f"sslfast.cli.{name}")
    try:
        kind = module.options(words) if hasattr(module, "options") else module.Options
        options = tyro.cli(kind, prog=f"sslfast {name}", description=COMMANDS[name], args=words)
    except SystemExit as stop:  # tyro has printed the help (0) or what was wrong (2)
        return int(stop.code or 0)
    return int(module.run(options) or 0)


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream was closed, or the next file opened would take its place."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) != descriptor:  # the lowest that is free, so this one
                continue
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


def _drop_output() -> None:
    """Send what is still to be written to nowhere: Python would complain when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    from sslfast.errors import SslfastError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (SslfastError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "sslfast: from unlabelled images to a tuned classifier.",
            "",
            "usage: sslfast COMMAND [options]",
            "",
            *lines,
            "",
            "sslfast COMMAND --help shows a command's options; --debug shows the traceback of an error.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
