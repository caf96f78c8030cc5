"""The floors to hold: how many times faster than whom we have to be. ``python -m sslfast.bench.bars FILE.jsonl``."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslfast.bench.contenders import COMPILED, EAGER, OURS
from sslfast.bench.head_bank import FOREACH, LIGHTNING, MAIN
from sslfast.bench.pretrain_step import IN_LOOP, LAST, LIGHTLY
from sslfast.bench.pretrain_step import SIZES as STEP_SIZES
from sslfast.bench.results import Results, Row
from sslfast.bench.show import comparison, ours_of
from sslfast.bench.store import ALONE, EXTRACTION_SIZES, GATHER_SIZES, MEMCPY
from sslfast.bench.views import SIZES as VIEW_SIZES
from sslfast.bench.views import TORCHVISION
from sslfast.errors import SslfastError


@dataclass(frozen=True)
class Bar:
    """One floor, over a baseline in float32 on the CPU under the tuned allocator.

    Args:
        op: the operator.
        size: one of its case's sizes.
        baseline: a contender of the case.
        factor: the baseline's median over ours, of one interleaved run, must not be below it.
        mode: of which pass.
        dtype: of our products.
        against: of the baseline's.
    """

    op: str
    size: tuple[int, ...]
    baseline: str
    factor: float
    mode: str = "both"
    dtype: str = "float32"
    against: str = "float32"


BARS = (
    Bar("nt_xent", (256, 128), "lightly", 1.5),
    Bar("nt_xent", (1024, 128), "lightly", 5),
    Bar("nt_xent", (4096, 128), "lightly", 4),
    Bar("barlow_twins", (256, 8192), "lightly", 20),
    Bar("barlow_twins", (1024, 8192), "lightly", 5),
    Bar("barlow_twins", (1024, 2048), "lightly", 1.5),
    Bar("sinkhorn", (2048, 3000), "lightly", 2.5, "forward"),
    Bar("sinkhorn", (1024, 65536), "lightly", 2.5, "forward"),
    Bar("swav_loss", (256, 3000, 2, 6, 0), "lightly", 2.5),
    Bar("self_classifier", (512, 1000, 2, 6), EAGER, 3),
    *(
        Bar("head_bank", size, baseline, factor, "step", dtype)
        for baseline, dtype, factors in (
            (FOREACH, "float32", (4, 3.5, 10)),
            (FOREACH, "bfloat16", (6.5, 5.5, 15)),
            (LIGHTNING, "float32", (5.5, 4.5, 20)),
        )
        for size, factor in zip(MAIN, factors, strict=True)
    ),
    Bar("gather", GATHER_SIZES[0], MEMCPY, 0.5, "gather"),
    *(Bar("extraction", size, ALONE, 0.9, "image") for size in EXTRACTION_SIZES),
    # The best of torchvision's numbers of workers is what has to be beaten.
    *(Bar("views", VIEW_SIZES[0], workers, 3, "image") for workers in TORCHVISION),
    *(
        Bar("pretrain_step", size, baseline, factor, "step", dtype, against)
        for size in STEP_SIZES
        for baseline, factor, dtype, against in (
            (LIGHTLY, 1, "float32", "float32"),
            (IN_LOOP, 1, "float32", "float32"),
            (LAST, 1, "float32", "float32"),
            (LAST, 1, "bfloat16", "bfloat16"),
            (LIGHTLY, 2, "bfloat16", "float32"),
            (IN_LOOP, 2, "bfloat16", "float32"),
        )
    ),
)
"""Besides these, no pass of any size may be slower than ``torch.compile`` of the reference, and the head bank at no
main size slower than anybody else in the same products."""

MET, MISSED = "met   ", "MISSED"
WHERE = {"device": "cpu", "allocator": "tuned"}


@dataclass(frozen=True)
class Verdict:
    """A bar, and what was measured against it; None where nothing was."""

    bar: Bar
    measured: float | None
    spread: tuple[float, float] | None = None
    why: str = "not measured"

    @property
    def met(self) -> bool:
        """Whether the bar is held; what was not measured is not."""
        return self.measured is not None and self.measured >= self.bar.factor

    def line(self) -> str:
        """Put the verdict on one line."""
        bar = self.bar
        what = f"{bar.op} {' x '.join(map(str, bar.size))} {bar.mode}"
        what += f" in {bar.dtype}" if bar.dtype != "float32" else ""
        head = f"{MET if self.met else MISSED}  {what}: at least {bar.factor:g} x {bar.baseline}"
        if self.measured is None:
            return f"{head}; {self.why}"
        low, high = self.spread or (self.measured, self.measured)
        return f"{head}; measured {self.measured:.2f} [{low:.2f}-{high:.2f}]"


def judge(results: Results, bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """Hold the rows against the bars, then against the rule for all cases."""
    rows = [row for row in results.rows(**WHERE) if "median_ms" in row or "skipped" in row]
    ours = ours_of(rows)
    verdicts = [_verdict(bar, rows, ours) for bar in bars]
    compiled = [
        row for row in rows if row["contender"] == COMPILED and row["dtype"] == "float32" and "median_ms" in row
    ]
    for row in compiled:
        bar = Bar(row["op"], tuple(row["size"]), COMPILED, 1, row["mode"])
        verdicts.append(_verdict(bar, [row], ours))
    for row in rows:
        if row["op"] == "head_bank" and tuple(row["size"]) in MAIN and not row["contender"].startswith(OURS):
            bar = Bar("head_bank", tuple(row["size"]), row["contender"], 1, "step", row["dtype"], row["dtype"])
            verdicts.append(_verdict(bar, [row], ours))
    return verdicts


def _verdict(bar: Bar, rows: Sequence[Row], ours: dict[tuple[object, ...], Row]) -> Verdict:
    for row in rows:
        found = row["op"], tuple(row["size"]), row["contender"], row["dtype"]
        if found != (bar.op, bar.size, bar.baseline, bar.against):
            continue
        if "skipped" in row:
            return Verdict(bar, None, why=f"{bar.baseline}: {row['skipped']}")
        mine = ours.get(comparison({**row, "dtype": bar.dtype}))
        if row["mode"] == bar.mode and mine is not None:
            spread = row["p20_ms"] / mine["p80_ms"], row["p80_ms"] / mine["p20_ms"]
            return Verdict(bar, row["median_ms"] / mine["median_ms"], spread)
    return Verdict(bar, None)


def report(results: Results) -> Iterator[str]:
    """Write a line per bar; of the rule for all cases, only what breaks it, and how many hold it."""
    verdicts = judge(results)
    for verdict in verdicts[: len(BARS)]:
        yield verdict.line()
    for name, chosen in ((COMPILED, True), ("anybody else's head bank in the same products", False)):
        rule = [verdict for verdict in verdicts[len(BARS) :] if (verdict.bar.baseline == COMPILED) == chosen]
        yield from (verdict.line() for verdict in rule if not verdict.met)
        held = sum(verdict.met for verdict in rule)
        state = MET if rule and held == len(rule) else MISSED
        yield f"{state}  never slower than {name}: {held} of {len(rule)} passes"


def main(arguments: Sequence[str]) -> int:
    """Print the bars of a file and return 0 where all of them are held, 1 where one is missed, 2 for a wrong call."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m sslfast.bench.bars FILE.jsonl", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    if not path.exists():
        print(f"bars: {path} does not exist", file=sys.stderr)
        return 2
    try:
        results = Results(path)
    except SslfastError as error:
        print(f"bars: {error}", file=sys.stderr)
        return 1
    lines = list(report(results))
    print("\n".join(lines))
    return 1 if any(line.startswith(MISSED) for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
