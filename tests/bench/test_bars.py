import pytest

from sslfast.bench import bars
from sslfast.bench.bars import BARS, Bar, judge
from sslfast.bench.contenders import COMPILED, names
from sslfast.bench.head_bank import MAIN, PROCESSES
from sslfast.bench.pretrain_step import SIZES, contenders
from sslfast.bench.registry import CASES, SCENARIOS
from sslfast.bench.results import Results
from sslfast.bench.timing import modes

HALF = "bfloat16", "float32"
"""Our products, and the baseline's that they are held against."""


@pytest.fixture
def results(tmp_path, row, machine):
    results = Results(tmp_path / "rows.jsonl")
    key = results.enter(*machine)
    for bar in BARS:
        # The times that meet every bar exactly: 1 ms for our float32, less for our bfloat16.
        same = [other for other in BARS if (other.op, other.size) == (bar.op, bar.size)]
        single = {other.baseline: other.factor for other in same if other.dtype == "float32"}
        half = min((single[o.baseline] / o.factor for o in same if (o.dtype, o.against) == HALF), default=1.0)
        ours = 1.0 if bar.dtype == "float32" else half
        theirs = single[bar.baseline] if bar.against == "float32" else bar.factor * ours
        more = {"size": list(bar.size), "mode": bar.mode, "machine": key}
        results.put(row(bar.op, "sslfast", ours, dtype=bar.dtype, **more))
        results.put(row(bar.op, bar.baseline, theirs, dtype=bar.against, **more))
        if bar.op in CASES:
            results.put(row(bar.op, COMPILED, 1.0, **more))
    results.save()
    return results


def put(results, row, **more):
    results.put(row(machine=next(iter(results.machines)), **more))
    results.save()


def test_all_met(results, capsys):
    assert bars.main([str(results.path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(BARS) + 2 and all(line.startswith("met ") for line in said)
    assert said[0] == "met     nt_xent 256 x 128 both: at least 1.5 x lightly; measured 1.50 [1.13-2.00]"
    assert (
        "met     head_bank 128 x 10 x 256 x 64 x 64 step in bfloat16: at least 15 x PyTorch, foreach; "
        "measured 15.00 [11.25-20.00]"
    ) in said
    count = len({bar for bar in BARS if bar.op in CASES})
    assert said[-2] == f"met     never slower than reference torch.compile: {count} of {count} passes"
    count = len({(bar.size, bar.baseline) for bar in BARS if bar.op == "head_bank"})
    assert (
        said[-1]
        == f"met     never slower than anybody else's head bank in the same products: {count} of {count} passes"
    )


def test_one_that_is_missed(results, row, capsys):
    put(results, row, contender="lightly", median=1.49)
    assert bars.main([str(results.path)]) == 1
    assert "MISSED  nt_xent 256 x 128 both: at least 1.5 x lightly; measured 1.49" in capsys.readouterr().out


def test_slower_than_the_compiled_reference(results, row, capsys):
    put(results, row, op="unit_rows", median=1.0, mode="forward")
    put(results, row, op="unit_rows", contender=COMPILED, median=0.9, mode="forward")
    assert bars.main([str(results.path)]) == 1
    said = capsys.readouterr().out.splitlines()
    line = "MISSED  unit_rows 256 x 128 forward: at least 1 x reference torch.compile; measured 0.90"
    assert said[-3].startswith(line)
    assert said[-2].startswith("MISSED  never slower") and said[-1].startswith("met ")


def test_a_head_bank_is_held_against_everybody_in_the_same_products(results, row, capsys):
    more = {"op": "head_bank", "size": list(MAIN[0]), "mode": "step", "dtype": "bfloat16"}
    ours = next(one["median_ms"] for one in results.rows(contender="sslfast", **more))
    put(results, row, contender=PROCESSES, median=0.9 * ours, **more)
    assert bars.main([str(results.path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith(
        "MISSED  head_bank 512 x 10 x 1024 x 64 x 64 step in bfloat16: "
        "at least 1 x PyTorch, two processes; measured 0.90"
    )
    put(results, row, contender=PROCESSES, median=1.1 * ours, **more)
    put(results, row, contender="sslfast, 128-bit vectors", median=0.1 * ours, **more)
    assert bars.main([str(results.path)]) == 0


def test_steps_are_held_against_every_form_of_lightly():
    for size in SIZES:
        peers = {(one.name, one.dtype) for one in contenders(size) if one.name.startswith("lightly")}
        of_size = [bar for bar in BARS if (bar.op, bar.size) == ("pretrain_step", size)]
        same = {(bar.baseline, bar.dtype): bar.factor for bar in of_size if bar.dtype == bar.against}
        assert set(same) == peers and min(same.values()) >= 1
        plain = {bar.baseline: bar.factor for bar in of_size if (bar.dtype, bar.against) == HALF}
        assert set(plain) == {"lightly", "lightly, no workers"} and min(plain.values()) >= 2


def test_views_are_held_against_every_number_of_workers():
    found = {bar.baseline: bar.factor for bar in BARS if bar.op == "views"}
    assert set(found) == {f"torchvision v2, {word}" for word in ("no worker", "1 worker", "2 workers")}
    assert min(found.values()) >= 3


@pytest.mark.parametrize("other", [{"allocator": "default"}, {"dtype": "float64"}, {"device": "cuda"}])
def test_other_rows_do_not_count(results, row, other):
    put(results, row, contender="lightly", median=100.0, **other)
    put(results, row, contender="lightly", median=1.0)
    assert not judge(results)[0].met


def test_what_was_not_measured_is_not_met(tmp_path, row, machine, capsys):
    results = Results(tmp_path / "rows.jsonl")
    key = results.enter(*machine)
    results.put(row(machine=key))
    skipped = {name: value for name, value in row(contender="lightly", machine=key).items() if not name.endswith("_ms")}
    results.put({**skipped, "mode": None, "skipped": "not installed"})
    results.save()
    assert bars.main([str(results.path)]) == 1
    said = capsys.readouterr().out
    assert "at least 1.5 x lightly; lightly: not installed" in said and said.count("not measured") == len(BARS) - 1


@pytest.mark.parametrize(("words", "code"), [([], 2), (["missing.jsonl"], 2), (["--help"], 2), ([__file__], 1)])
def test_wrong_calls_are_one_line(words, code, capsys):
    assert bars.main(words) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "bar", BARS, ids=lambda bar: f"{bar.op}-{'x'.join(map(str, bar.size))}-{bar.dtype}-{bar.baseline}"
)
def test_a_bar_is_measured_by_the_benchmark(bar):
    if bar.op in SCENARIOS:
        scenario = SCENARIOS[bar.op]
        there = {(one.name, one.dtype) for one in scenario.contenders(bar.size)}
        assert bar.size in scenario.sizes and bar.mode == scenario.unit
        assert {("sslfast", bar.dtype), (bar.baseline, bar.against)} <= there
        return
    case = CASES[bar.op]
    assert bar.size in case.bench_sizes and bar.baseline in names(case) and bar.mode == modes(case)[-1]


def test_a_bar_says_what_it_is():
    assert Bar("a", (1, 2), "b", 2).mode == "both"
