"""``sslfast bench``: time the kernels against named baselines, and measure their memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sslfast.errors import UsageError
from sslfast.progress import bar, console


@dataclass(frozen=True)
class Options:
    """What to measure, and where to write it."""

    op: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="[OP ...]", help="operators; all by default")]
    ] = ()
    sizes: Annotated[
        str, tyro.conf.arg(help="sizes instead of the operators' own: 4096x128,1024x128", metavar="SIZES")
    ] = ""
    sweep: Annotated[bool, tyro.conf.arg(help="the operators' sizes of growing N, for a plot over N")] = False
    backend: Annotated[str, tyro.conf.arg(help="cpu or cuda")] = "cpu"
    dtype: Annotated[tuple[str, ...], tyro.conf.arg(help="float32, float64, float16 or bfloat16")] = ("float32",)
    threads: Annotated[int, tyro.conf.arg(help="CPU threads; 0: as many as torch chooses")] = 0
    allocator: Annotated[
        tuple[str, ...], tyro.conf.arg(help="tuned (freed memory is kept) or default (glibc as it is); CPU only")
    ] = ("tuned", "default")
    samples: Annotated[int, tyro.conf.arg(help="timed runs of each contender, taken in turn")] = 50
    seconds: Annotated[float, tyro.conf.arg(help="timed runs of all contenders of a size, together")] = 20.0
    minutes: Annotated[float, tyro.conf.arg(help="end after so long; the same command goes on; 0: no limit")] = 0.0
    compiled: Annotated[bool, tyro.conf.arg(help="also time torch.compile of the reference")] = True
    time: Annotated[bool, tyro.conf.arg(help="time; without, the memory alone is measured")] = True
    memory: Annotated[bool, tyro.conf.arg(help="measure the peak memory, in processes of their own")] = True
    json: Annotated[
        Path | None, tyro.conf.arg(help="JSON lines: keep the rows here, and measure only what is not in it yet")
    ] = None
    again: Annotated[bool, tyro.conf.arg(help="measure again what the file holds already")] = False
    plot: Annotated[Path | None, tyro.conf.arg(help="draw the rows as a PNG (needs matplotlib)")] = None


def run(options: Options) -> int:
    """Check, measure and print; an operator that fails its gates gets no numbers, and the exit code is 1."""
    from sslfast.bench import plots, results, runner, show

    plan = _plan(options, runner)
    if options.plot is not None:
        plots.check(options.plot)
    rows = results.Results(options.json)
    work = runner.Runner(plan, rows)
    missing = work.open()
    if len(missing) < len(plan.units):
        console.print(f"{len(plan.units) - len(missing)} of {len(plan.units)} sizes are in {options.json} already")
    done = 0
    if missing:
        with bar("measuring", len(missing), "size") as progress:
            progress.note(str(missing[0]))
            for done, _ in enumerate(work.run(missing), start=1):
                progress.advance()
                progress.note(str(missing[min(done, len(missing) - 1)]))
    wanted = {(unit.case.name, unit.size, unit.dtype) for unit in plan.units}
    shown = [
        row
        for row in rows.rows(device=plan.device)
        if (row["op"], tuple(row["size"]), "float32" if row["op"] in runner.SCENARIOS else row["dtype"]) in wanted
    ]
    show.show(shown, rows.machines)
    for name, why in work.refused.items():
        console.print(f"[red]{name}: no numbers, because it fails its gates: {why}")
    for name, why in work.failed.items():
        console.print(f"[red]{name}: not measured: {why}")
    if options.json is not None:
        console.print(f"written: {options.json}")
    if options.plot is not None and shown:
        plots.draw(shown, rows.machines, options.plot)
        console.print(f"written: {options.plot}")
    if done < len(missing):
        console.print(f"{len(missing) - done} of the sizes are left; the same command goes on")
    return 1 if work.refused or work.failed else 0


def _plan(options: Options, runner: Any) -> Any:
    """Turn the options into a plan, or say which of them makes no sense."""
    import torch

    for name, values, known in (
        ("operator", options.op, [*runner.CASES, *runner.SCENARIOS]),
        ("dtype", options.dtype, runner.DTYPES),
        ("allocator", options.allocator, runner.ALLOCATORS),
        ("backend", (options.backend,), ("cpu", "cuda")),
    ):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise UsageError(f"no {name} {unknown[0]!r}; there are: {', '.join(known)}")
    for name in ("samples", "seconds"):
        if not getattr(options, name) > 0:
            raise UsageError(f"--{name} must be above 0, got {getattr(options, name)}")
    for name in ("threads", "minutes"):
        if not getattr(options, name) >= 0:
            raise UsageError(f"--{name} must not be negative, got {getattr(options, name)}")
    if not (options.time or options.memory or options.json):
        raise UsageError("--no-time --no-memory leaves nothing to measure; with --json it shows what the file holds")
    if options.sizes and options.sweep:
        raise UsageError("--sizes and --sweep exclude each other: both say which sizes")
    if options.backend == "cuda" and not torch.cuda.is_available():
        raise UsageError("--backend cuda was asked for, but torch sees no GPU on this machine; use --backend cpu")
    units = runner.units(options.op, options.dtype, _sizes(options, runner), options.sweep)
    if not units:
        raise UsageError(f"nothing to measure: {_nothing(options)}")
    return runner.Plan(
        units=units,
        device=options.backend,
        allocators=options.allocator,
        threads=options.threads,
        samples=options.samples,
        seconds=options.seconds,
        minutes=options.minutes,
        compiled=options.compiled,
        timed=options.time,
        memory=options.memory,
        again=options.again,
    )


def _nothing(options: Options) -> str:
    which = ", ".join(options.op) or "any operator"
    return f"no sizes to sweep in {which}" if options.sweep else f"{which} in {', '.join(options.dtype) or 'no dtype'}"


def _sizes(options: Options, runner: Any) -> list[tuple[int, ...]]:
    """Read ``--sizes``, and hold it against the operators that it is for."""
    found = []
    for text in filter(None, options.sizes.split(",")):
        try:
            size = tuple(int(part) for part in text.strip().split("x"))
        except ValueError:
            raise UsageError(f"--sizes must look like 4096x128,1024x128, got {text.strip()!r}") from None
        if min(size) < 1:
            raise UsageError(f"--sizes must hold numbers above 0, got {text.strip()!r}")
        for name in options.op or runner.CASES:
            wanted = len({**runner.CASES, **runner.SCENARIOS}[name].sizes[0])
            if len(size) != wanted:
                raise UsageError(f"{name} takes sizes of {wanted} numbers, got {text.strip()!r}")
        found.append(size)
    return found
