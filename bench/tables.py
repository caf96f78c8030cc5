"""Fills the tables of README.md and docs/ from the measured rows: ``python -m sslfast.bench.tables`` (``make tables``).

A table stands between ``<!-- measured: OP -->`` and ``<!-- end -->``; OP ``all`` is the README's, of all operators, and
``NAME_overview`` the README's of a scenario; ``head_search_NAME`` is a search on real features, and the names of
``pretrain_tables`` are those of their results files.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslfast.bench import pretrain_tables, scenario_tables, search_tables
from sslfast.bench.contenders import COMPILED, EAGER, GRAPH, OURS, names
from sslfast.bench.machine import line
from sslfast.bench.registry import CASES, SCENARIOS
from sslfast.bench.results import Results, Row
from sslfast.bench.show import comparison, limit_text, ours_of, size_text
from sslfast.bench.timing import modes
from sslfast.bench.turns import Scenario
from sslfast.files import writing

ROOT = Path(__file__).resolve().parent.parent
CPU = Path("bench/results/cpu.jsonl")
GPU = Path("bench/results/gpu.jsonl")
HEADINGS = {EAGER: "PyTorch, eager", COMPILED: "torch.compile"}
PLACE = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_YET = (
    "Nothing has run on a GPU yet: `make gpu` on a machine that has one writes `bench/results/gpu.jsonl`, "
    "and `make tables` fills this."
)
OVERVIEW = """Forward and backward (forward alone where there is no gradient) in float32: milliseconds, median of
interleaved runs with the 20th and 80th percentile in brackets. Of each baseline: its milliseconds; how many times
faster sslfast is, in parentheses the same under glibc's default allocator (all other numbers: under one that keeps
freed memory); its peak memory. What we lose is in bold. MB: peak by PyTorch's account, in parentheses the growth of the
resident set. Of the limit: the best time that the machine's multiply-adds and its memory allow, over ours."""
DETAILS = """Milliseconds: median of interleaved runs with the 20th and 80th percentile in brackets, and how many times
faster sslfast is; what we lose is in bold. [docs/bench.md](../bench.md) explains the allocators and the limit."""


def documents(root: Path) -> list[Path]:
    """Return the pages that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, cpu: Results, gpu: Results, root: Path = ROOT) -> str:
    """Return a page with its tables made anew; ``root`` holds the results of searches."""

    def table(found: re.Match[str]) -> str:
        name = found[2]
        if name.startswith(search_tables.PREFIX):
            return "\n".join([found[1], *search_tables.page(root / CPU.parent / f"{name}.json"), "", found[3]])
        if name in pretrain_tables.PAGES:
            made = pretrain_tables.PAGES[name](root / CPU.parent / f"{name}.json")
            return "\n".join([found[1], *made, "", found[3]])
        scenario = SCENARIOS.get(name.removesuffix("_overview"))
        if scenario is not None:
            return found[1] + of_scenario(scenario, cpu, name.endswith("_overview")) + found[3]
        if name != "all" and name not in CASES:
            every = ", ".join((*CASES, *SCENARIOS, *pretrain_tables.PAGES))
            raise SystemExit(f"tables: no operator {name!r}; there are: all, {every}")
        made = overview(cpu) if name == "all" else page(name, cpu, gpu)
        return found[1] + made + found[3]

    return PLACE.sub(table, text)


def of_scenario(scenario: Scenario, cpu: Results, short: bool) -> str:
    """Make a scenario's table, for its own page or for the README."""
    rows = list(cpu.rows(op=scenario.name, device="cpu"))
    if not rows:
        return _empty()
    make = scenario_tables.overview if short else scenario_tables.page
    return "\n".join(["", *make(scenario, cpu), "", _source(rows, cpu), ""])


def overview(cpu: Results) -> str:
    """Make the README's table: the last pass of every operator and size, in float32 on the CPU."""
    rows = [row for row in cpu.rows(device="cpu", dtype="float32") if row["op"] in CASES]
    if not rows:
        return _empty()
    ours = ours_of(rows)
    lines = []
    for op, case in CASES.items():
        for size in _sizes(rows, op):
            mine = [row for row in rows if row["op"] == op and tuple(row["size"]) == size]
            found = {
                (row["allocator"], row["contender"]): row
                for row in mine
                if row.get("mode", modes(case)[-1]) == modes(case)[-1]
            }
            us = found.get(("tuned", OURS))
            if us is None or "median_ms" not in us:
                continue
            others = {name: _versus(found, ours, name) for name in names(case) if name not in (OURS, EAGER, COMPILED)}
            rest = [f"{name} {text}" for name, text in others.items() if name != "lightly" and text]
            lines.append(
                [
                    *(f"`{op}`", size_text(us), _timed(us), _memory(us), _share(us)),
                    *(_versus(found, ours, EAGER), _versus(found, ours, COMPILED), others.get("lightly", "")),
                    "; ".join(rest),
                ]
            )
    head = ["op", "size", "sslfast, ms", "MB", "of the limit", *HEADINGS.values(), "lightly", "others"]
    return "\n".join(
        [
            "",
            *_table(head, lines, right=range(2, 5)),
            "",
            OVERVIEW,
            "",
            _source(rows, cpu),
            "",
        ]
    )


def page(op: str, cpu: Results, gpu: Results) -> str:
    """Make the table of an operator's own page: every pass and allocator, and the GPU's."""
    case = CASES[op]
    parts = []
    rows = [row for row in cpu.rows(op=op, device="cpu") if "median_ms" in row or "skipped" in row]
    if rows:
        parts += [*_details(op, rows, cpu), ""]
    else:
        parts += [_empty().strip(), ""]
    rows = [row for row in gpu.rows(op=op, device="cuda") if "median_ms" in row or "skipped" in row]
    if rows:
        parts += [*_details(op, rows, gpu), ""]
    else:
        columns = [OURS, f"{OURS}, {GRAPH}", *(HEADINGS.get(name, name) for name in names(case) if name != OURS)]
        sizes = case.bench_sizes
        blank = [[" x ".join(map(str, size)), modes(case)[-1], *[""] * len(columns)] for size in sizes]
        parts += [*_table(["GPU", "pass", *columns], blank), "", NOT_YET, ""]
    return "\n" + "\n".join(parts)


def _details(op: str, rows: list[Row], results: Results) -> Iterable[str]:
    case = CASES[op]
    ours = ours_of(rows)
    columns = [name for name in _contenders(case, rows) if name != OURS]
    shown = [name for name in columns if any(row["contender"] == name and "median_ms" in row for row in rows)]
    types = list({row["dtype"]: 0 for row in rows})
    lines = []
    for size in _sizes(rows, op):
        for dtype in types:
            mine = [row for row in rows if tuple(row["size"]) == size and row["dtype"] == dtype]
            which = [" x ".join(map(str, size)), *([dtype] if len(types) > 1 else [])]
            for allocator in {row["allocator"]: 0 for row in mine}:
                for mode in modes(case):
                    found = {
                        row["contender"]: row
                        for row in mine
                        if row["allocator"] == allocator and row.get("mode") == mode
                    }
                    if OURS not in found:
                        continue
                    cells = [_compared(found[name], ours) if name in found else "" for name in shown]
                    us = found[OURS]
                    lines.append([*which, allocator, mode, _timed(us), _share(us), *cells])
            peaks = {row["contender"]: row for row in mine if "peak_mb" in row or "memory_skipped" in row}
            if peaks:
                cells = [_memory(peaks[name]) if name in peaks else "" for name in shown]
                lines.append([*which, "", "MB (resident)", _memory(peaks[OURS]) if OURS in peaks else "", "", *cells])
    head = ["size", *(["dtype"] if len(types) > 1 else []), "allocator", "pass", "sslfast", "of the limit"]
    yield from _table([*head, *(HEADINGS.get(name, name) for name in shown)], lines)
    yield ""
    yield DETAILS
    left_out = sorted({f"{row['contender']} at {size_text(row)}: {row['skipped']}" for row in rows if "skipped" in row})
    if left_out:
        yield f"\nWithout numbers: {'; '.join(left_out)}."
    yield ""
    yield _source(rows, results)


def _contenders(case: Any, rows: Sequence[Row]) -> list[str]:
    known = list(names(case))
    graphs = [f"{name}, {GRAPH}" for name in known]
    present = {row["contender"] for row in rows}
    return [name for name in (*known, *graphs) if name in present]


def _versus(found: Mapping[tuple[str, str], Row], ours: Mapping[tuple[Any, ...], Row], name: str) -> str:
    """Write a baseline's cell of the overview."""
    row = found.get(("tuned", name))
    if row is None:
        return ""
    if "skipped" in row:
        return row["skipped"] if "memory" in row["skipped"] or "takes" in row["skipped"] else "-"
    text = f"{_number(row['median_ms'])}, {_factor(row, ours)}"
    other = found.get(("default", name))
    if other is not None and "median_ms" in other and comparison(other) in ours:
        text += f" ({_factor(other, ours)})"
    return text + (f", {_number(row['peak_mb'])} MB" if "peak_mb" in row else "")


def _compared(row: Row, ours: Mapping[tuple[Any, ...], Row]) -> str:
    return row["skipped"] if "skipped" in row else f"{_timed(row)} {_factor(row, ours)}"


def _factor(row: Row, ours: Mapping[tuple[Any, ...], Row]) -> str:
    factor = row["median_ms"] / ours[comparison(row)]["median_ms"]
    return f"x{_number(factor)}" if factor >= 1 else f"**x{_number(factor)}**"


def _timed(row: Row) -> str:
    return f"{_number(row['median_ms'])} [{_number(row['p20_ms'])}-{_number(row['p80_ms'])}]"


def _memory(row: Row) -> str:
    if "peak_mb" not in row:
        return str(row.get("memory_skipped", ""))
    resident = f" ({_number(row['rss_mb'])})" if "rss_mb" in row else ""
    return _number(row["peak_mb"]) + resident


def _share(row: Row) -> str:
    return f"{100 * row['fraction']:.0f} %" if "fraction" in row else ""


def _number(value: float) -> str:
    """Write three digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _sizes(rows: Sequence[Row], op: str) -> list[tuple[int, ...]]:
    """Return an operator's measured sizes: those of its case first, in its order."""
    found = {tuple(row["size"]): 0 for row in rows if row["op"] == op}
    known = list(CASES[op].bench_sizes)
    return [size for size in known if size in found] + [size for size in found if size not in known]


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---:' if index in right else '---' for index in range(len(head)))} |"
    for cells in lines:
        yield f"| {' | '.join(cells)} |"


def _source(rows: Iterable[Row], results: Results) -> str:
    """Say what the rows were measured on, machine by machine."""
    found = []
    for key in {row["machine"]: 0 for row in rows}:
        machine = results.machines[key]
        bits = f"{machine['vector_bits']}-bit vectors, " if not machine["cuda"] else ""
        limits = "; ".join(f"{name}: {limit_text(limit)}" for name, limit in machine["limits"].items())
        found.append(f"{line(dict(machine))}. {bits}measured limits: {limits}.")
    count = {row["samples"] for row in rows if "samples" in row}
    runs = f"{min(count)} to {max(count)} runs" if len(count) > 1 else f"{min(count)} runs" if count else ""
    return f"Measured on {' And on '.join(found)} {runs} each.".replace("  ", " ")


def _empty() -> str:
    return "\nNot measured yet: `make bench` writes `bench/results/cpu.jsonl`, and `make tables` fills this.\n"


def update(root: Path, write: Callable[[Path, str], None]) -> list[Path]:
    """Make every page's tables anew, hand the pages that change to ``write``, and return their paths."""
    cpu, gpu = Results(root / CPU), Results(root / GPU)
    changed = []
    for path in documents(root):
        old = path.read_text()
        new = filled(old, cpu, gpu, root)
        if new != old:
            write(path, new)
            changed.append(path)
    return changed


def _write(path: Path, text: str) -> None:
    with writing(path) as partial:
        partial.write_text(text)


def main() -> int:
    """Fill the tables of this checkout."""
    if not (ROOT / "README.md").exists():
        print(f"tables: {ROOT} is no checkout of sslfast: its README.md is missing", file=sys.stderr)
        return 2
    for path in update(ROOT, _write):
        print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
