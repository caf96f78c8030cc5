"""Rows for people: a table on the terminal, and the words that tables and plots share."""

from collections.abc import Iterable, Mapping
from typing import Any

from sslfast.bench.contenders import OURS
from sslfast.bench.machine import line
from sslfast.bench.results import Row


def size_text(row: Mapping[str, Any]) -> str:
    """Write a size as ``4096 x 128``."""
    return " x ".join(map(str, row["size"]))


def ours_of(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """Return our rows by what a baseline's row is compared by."""
    return {comparison(row): row for row in rows if row["contender"] == OURS and "mode" in row}


def comparison(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what two rows must share to be compared."""
    options = tuple(sorted(row["options"].items()))
    return row["op"], tuple(row["size"]), options, row["dtype"], row["device"], row["allocator"], row.get("mode")


def show(rows: list[Row], machines: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line per contender and pass, ours first, with the factor by which ours is faster.

    Of many sizes only the whole pass is shown; the file holds the others.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="\n".join(describe(machines[key]) for key in {row["machine"]: 0 for row in rows}))
    table.title_justify = "left"
    for heading in ("op", "size", "dtype", "allocator", "pass", "contender"):
        table.add_column(heading)
    for heading in ("median ms", "p20-p80", "fastest", "n", "MB", "MB resident", "of limit", "x ours"):
        table.add_column(heading, justify="right")
    ours = ours_of(rows)
    several = len({(row["op"], tuple(row["size"]), row["dtype"]) for row in rows}) > 2
    whole = {row["op"] for row in rows if row.get("mode") == "both"} if several else set()
    for row in rows:
        if row["op"] in whole and row.get("mode", "both") != "both":
            continue
        start = (row["op"], size_text(row), row["dtype"], row["allocator"], row.get("mode", ""), row["contender"])
        if "skipped" in row:
            table.add_row(*start, row["skipped"], *[""] * 7)
            continue
        base = ours.get(comparison(row), {}).get("median_ms")
        timed = ["", "", "", ""]
        if "median_ms" in row:
            spread = f"{row['p20_ms']:.3f}-{row['p80_ms']:.3f}"
            timed = [f"{row['median_ms']:.3f}", spread, f"{row['fastest_ms']:.3f}", str(row["samples"])]
        table.add_row(
            *start,
            *timed,
            f"{row['peak_mb']:.2f}" if "peak_mb" in row else row.get("memory_skipped", ""),
            f"{row['rss_mb']:.2f}" if "rss_mb" in row else "",
            f"{100 * row['fraction']:.0f} %" if "fraction" in row else "",
            f"{row['median_ms'] / base:.2f}" if base and "median_ms" in row else "",
        )
    Console(width=190).print(table)


def describe(machine: Mapping[str, Any]) -> str:
    """Put a machine and its measured limits on one line."""
    limits = "; ".join(f"{name}: {limit_text(limit)}" for name, limit in machine["limits"].items())
    return line(dict(machine)) + (f" | limits, {limits}" if limits else "")


def limit_text(limit: Mapping[str, float]) -> str:
    """Write measured limits with their units."""
    flops, copy, cached = (limit[f"{name}_per_s"] / 1e9 for name in ("operations", "bytes", "cached_bytes"))
    return f"{flops:,.0f} GFLOP/s, {copy:,.0f} GB/s of memory, {cached:,.0f} GB/s of the cache"
