"""The tables of programs that are timed by the turn: every contender on its own page, the main sizes in the README."""

from collections.abc import Iterator, Mapping, Sequence

from sslfast.bench.contenders import OURS
from sslfast.bench.results import Results, Row
from sslfast.bench.turns import Scenario

DETAILS = """Median of interleaved turns with the 20th and 80th percentile in brackets; then how many times faster
sslfast is, with its {typed} in float32 and in bfloat16; what we lose is in bold. Of the limit: the time that the
operations of one {unit} take at the rate of the best product in the same type, or its bytes at the rate of the best
copy, whichever is longer, over the time. [docs/bench.md](bench.md) explains the allocators."""
OVERVIEW = """Milliseconds, {title} ({axes}); in parentheses how many times faster sslfast is
with its {typed} in float32 / in bfloat16. [docs/{name}.md](docs/{name}.md) has all rows."""


def page(scenario: Scenario, results: Results) -> Iterator[str]:
    """Make the lines of a scenario's own page."""
    head = f"| {', '.join(scenario.axes)} | allocator | contender | {scenario.typed}"
    yield f"{head} | ms | faster: float32 | bfloat16 | limit |"
    yield "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |"
    for size, allocator, rows in _groups(scenario, results):
        ours = _ours(rows)
        for row in rows:
            start = f"| {', '.join(f'{one:,}' for one in size)} | {allocator} | {row['contender']} | {row['dtype']} |"
            if "skipped" in row:
                yield f"{start} {row['skipped']} |  |  |  |"
                continue
            timed = f"{_number(row['median_ms'])} [{_number(row['p20_ms'])}-{_number(row['p80_ms'])}]"
            factors = [_factor(row, ours.get(dtype)) for dtype in ("float32", "bfloat16")]
            share = f"{100 * row['fraction']:.0f} %" if "fraction" in row else ""
            yield f"{start} {timed} | {factors[0]} | {factors[1]} | {share} |"
    yield ""
    yield DETAILS.format(unit=scenario.unit, typed=scenario.typed)


def overview(scenario: Scenario, results: Results) -> Iterator[str]:
    """Make the lines of the README: the sizes at which everybody takes part, under the tuned allocator."""
    groups = [(size, rows) for size, allocator, rows in _groups(scenario, results) if allocator == "tuned"]
    most = max((len(rows) for _, rows in groups), default=0)
    groups = [(size, rows) for size, rows in groups if len(rows) == most]
    head = " | ".join(", ".join(f"{one:,}" for one in size) for size, _ in groups)
    yield f"| contender | {scenario.typed} | {head} |"
    yield f"| --- | --- |{' ---: |' * len(groups)}"
    ours = [_ours(rows) for _, rows in groups]
    every = [{(row["contender"], row["dtype"]): row for row in rows} for _, rows in groups]
    for contender, dtype in {key: 0 for found in every for key in found}:
        cells = [_cell(found.get((contender, dtype)), mine) for found, mine in zip(every, ours, strict=True)]
        yield f"| {contender} | {dtype} | {' | '.join(cells)} |"
    yield ""
    yield OVERVIEW.format(title=scenario.title, axes=", ".join(scenario.axes), name=scenario.name, typed=scenario.typed)


def _groups(scenario: Scenario, results: Results) -> Iterator[tuple[tuple[int, ...], str, list[Row]]]:
    for size in scenario.sizes:
        order = [(contender.name, contender.dtype) for contender in scenario.contenders(size)]
        for allocator in ("tuned", "default"):
            rows = [
                row
                for row in results.rows(op=scenario.name, size=list(size), allocator=allocator, device="cpu")
                if (row["contender"], row["dtype"]) in order
            ]
            if rows:
                yield size, allocator, sorted(rows, key=lambda row: order.index((row["contender"], row["dtype"])))


def _ours(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["dtype"]: row for row in rows if row["contender"] == OURS and "median_ms" in row}


def _factor(row: Row, ours: Row | None) -> str:
    if ours is None or row is ours:
        return ""
    factor = row["median_ms"] / ours["median_ms"]
    return f"x{_number(factor)}" if factor >= 1 else f"**x{_number(factor)}**"


def _cell(row: Row | None, ours: Mapping[str, Row]) -> str:
    if row is None or "skipped" in row:
        return "-"
    text = _number(row["median_ms"])
    if row["contender"].startswith(OURS):
        return text
    return f"{text} ({' / '.join(_factor(row, ours.get(dtype)) for dtype in ('float32', 'bfloat16'))})"


def _number(value: float) -> str:
    """Write three digits, without an exponent."""
    if abs(value) >= 10:
        return f"{value:,.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
