"""``sslfast bench``: time the kernels against named baselines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sslfast.errors import UsageError
from sslfast.files import write_json
from sslfast.progress import bar, console


@dataclass(frozen=True)
class Options:
    """What to time, and where to write it."""

    op: Annotated[tuple[str, ...], tyro.conf.arg(help="operators; all of them by default")] = ()
    device: Annotated[str, tyro.conf.arg(help="cpu or cuda")] = "cpu"
    dtype: Annotated[str, tyro.conf.arg(help="float32, float64, float16 or bfloat16")] = "float32"
    threads: Annotated[int, tyro.conf.arg(help="CPU threads; 0: as many as torch chooses")] = 0
    samples: Annotated[int, tyro.conf.arg(help="timed runs of each contender, taken in turn")] = 30
    compiled: Annotated[bool, tyro.conf.arg(help="also time torch.compile of the reference")] = True
    memory: Annotated[bool, tyro.conf.arg(help="also measure the peak memory, in processes of their own")] = True
    json: Annotated[Path | None, tyro.conf.arg(help="write every row to this file")] = None


def run(options: Options) -> int:
    """Check, time and print; an operator that fails its check gets no numbers, and the exit code is 1."""
    import torch

    from sslfast.bench import runner
    from sslfast.bench.machine import line, machine

    cases = _chosen(options, runner)
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    found = machine()
    rows: list[dict[str, Any]] = []
    wrong = {}
    total = sum(len(case.bench_sizes) for case in cases)
    with bar("timing", total, "size") as progress:
        for case in cases:
            progress.note(f"{case.name}: gates")
            reason = runner.correct(case, options.device)
            if reason is not None:
                wrong[case.name] = reason
                progress.advance(len(case.bench_sizes))
                continue
            for size in case.bench_sizes:
                progress.note(f"{case.name} {size}")
                rows += _rows(options, runner, case, size)
                progress.advance()
    _print(rows, wrong, line(found))
    if options.json is not None:
        write_json(options.json, {"machine": found, "rows": rows, "refused": wrong})
        console.print(f"written: {options.json}")
    return 1 if wrong else 0


def _chosen(options: Options, runner: Any) -> list[Any]:
    from sslfast.device import resolve_device

    unknown = [name for name in options.op if name not in runner.CASES]
    if unknown:
        raise UsageError(f"no operator {unknown[0]!r}; there are: {', '.join(runner.CASES)}")
    if options.dtype not in runner.DTYPES:
        raise UsageError(f"no dtype {options.dtype!r}; there are: {', '.join(runner.DTYPES)}")
    if options.samples < 1:
        raise UsageError(f"--samples must be at least 1, got {options.samples}")
    if options.device not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, got {options.device!r}")
    resolve_device(options.device)
    cases = [case for name, case in runner.CASES.items() if not options.op or name in options.op]
    return [case for case in cases if runner.DTYPES[options.dtype] in case.epsilon]


def _rows(options: Options, runner: Any, case: Any, size: tuple[int, ...]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = runner.measure(
        case, size, options.device, options.dtype, options.samples, options.compiled
    )
    if options.memory:
        for row in rows:
            if row.get("mode") == "both":
                row["peak_mb"] = runner.peak_memory(case, size, options.device, options.dtype, row["contender"])
    return rows


def _print(rows: list[dict[str, Any]], wrong: dict[str, str], machine: str) -> None:
    """Print one table row per op, size and mode, with ours first and the factor against each baseline."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=machine, title_justify="left")
    for heading in ("op", "size", "dtype", "pass", "contender"):
        table.add_column(heading)
    for heading in ("median ms", "p20-p80", "fastest", "n", "peak MB", "x ours"):
        table.add_column(heading, justify="right")
    ours = {_key(row): row["median_ms"] for row in rows if row["contender"] == "sslfast" and "mode" in row}
    for row in rows:
        size = "x".join(map(str, row["size"]))
        if "skipped" in row:
            table.add_row(row["op"], size, row["dtype"], "", row["contender"], row["skipped"], "", "", "", "", "")
            continue
        table.add_row(
            *(row["op"], size, row["dtype"], row["mode"], row["contender"]),
            *(
                f"{row['median_ms']:.3f}",
                f"{row['p20_ms']:.3f}-{row['p80_ms']:.3f}",
                f"{row['fastest_ms']:.3f}",
                str(row["samples"]),
            ),
            "" if row.get("peak_mb") is None else f"{row['peak_mb']:.2f}",
            f"{row['median_ms'] / ours[_key(row)]:.2f}",
        )
    Console(width=150).print(table)
    for name, reason in wrong.items():
        console.print(f"[red]{name}: no numbers, because it fails its check: {reason}")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["op"], tuple(row["size"]), row["mode"]
