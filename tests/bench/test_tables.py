from pathlib import Path

import pytest

from sslfast.bench import tables
from sslfast.bench.registry import CASES, SCENARIOS
from sslfast.bench.results import Results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cpu(row, machine):
    results = Results()
    key = results.enter(*machine)
    for allocator, factor in (("tuned", 1), ("default", 3)):
        for mode in ("forward", "backward", "both"):
            for contender, median in (("sslfast", 1.0), ("reference eager", 0.9 * factor), ("lightly", 5.2 * factor)):
                results.put(row(contender=contender, median=median, mode=mode, allocator=allocator, machine=key))
    for found in results.rows(mode="both", allocator="tuned"):
        found |= {"peak_mb": 12.34, "rss_mb": 23.45}
    return results


def test_the_tables_in_the_tree_are_what_the_generator_makes():
    """`make tables` mends a failure of this test."""
    changed = []
    tables.update(ROOT, lambda path, text: changed.append(path.name))
    assert changed == []


def test_every_operator_has_a_table():
    text = "".join(path.read_text() for path in tables.documents(ROOT))
    assert [name for name in ("all", *CASES, *SCENARIOS) if f"<!-- measured: {name} -->" not in text] == []


def test_the_overview(cpu):
    text = tables.overview(cpu)
    assert (
        "| `nt_xent` | 256 x 128 | 1.00 [0.90-1.20] | 12.3 (23.4) | 100 % | 0.90, **x0.90** (x2.70), 12.3 MB |  "
        "| 5.20, x5.20 (x15.6), 12.3 MB |  |"
    ) in text
    assert "Abacus, 2 threads, load 0.1 | torch 2.15.0, commit abc" in text and "7 runs" in text
    assert "1,000 GFLOP/s, 10 GB/s of memory, 100 GB/s of the cache" in text


def test_an_operators_page(cpu):
    lines = tables.page("nt_xent", cpu, Results()).splitlines()
    cpu_rows = [line for line in lines if line.startswith("| 256 x 128 |") and "[" in line]
    assert [line.split(" | ")[1:3] for line in cpu_rows] == [
        [allocator, mode] for allocator in ("tuned", "default") for mode in ("forward", "backward", "both")
    ]
    assert cpu_rows[0].endswith("| 1.00 [0.90-1.20] | 100 % | 0.90 [0.81-1.08] **x0.90** | 5.20 [4.68-6.24] x5.20 |")
    assert "| 256 x 128 |  | MB (resident) | 12.3 (23.4) |  | 12.3 (23.4) | 12.3 (23.4) |" in lines
    empty = [line for line in lines if line.startswith("| 4096 x 128 | both |")]
    assert len(empty) == 1 and set(empty[0].removeprefix("| 4096 x 128 | both |")) == {" ", "|"}
    assert any("`make gpu`" in line for line in lines)


def test_rows_of_a_gpu_fill_its_table(cpu, row, machine):
    gpu = Results()
    limits = {f"cuda {dtype}": machine[1]["cpu float32"] for dtype in ("float32", "bfloat16")}
    key = gpu.enter({**machine[0], "cuda": ["Slide rule"]}, limits)
    for dtype in ("float32", "bfloat16"):
        for contender in ("sslfast", "sslfast, graph", "reference eager"):
            gpu.put(row(contender=contender, dtype=dtype, device="cuda", allocator="caching", machine=key))
    text = tables.page("nt_xent", cpu, gpu)
    assert "`make gpu`" not in text and "Slide rule" in text
    assert "| 256 x 128 | bfloat16 | caching | both | 1.00 [0.90-1.20] | 100 % |" in text


def test_a_contender_without_numbers_is_named(cpu, row):
    skipped = {name: row()[name] for name in ("op", "size", "options", "dtype", "device")}
    for allocator in ("tuned", "default"):
        reason = {"contender": "lightly", "skipped": "not enough memory", "machine": next(iter(cpu.machines))}
        cpu.put({**skipped, **reason, "allocator": allocator})
    assert "| not enough memory |" in tables.overview(cpu)
    assert "Without numbers: lightly at 256 x 128: not enough memory." in tables.page("nt_xent", cpu, Results())


def test_only_what_stands_between_the_marks_changes(cpu):
    before = "# Title\n<!-- measured: all -->\nformer\n<!-- end -->\nprose\n"
    after = tables.filled(before, cpu, Results())
    assert after.startswith("# Title\n<!-- measured: all -->\n") and after.endswith("<!-- end -->\nprose\n")
    assert "former" not in after and "x5.20" in after
    assert tables.filled(after, cpu, Results()) == after
    assert tables.filled("no marks", cpu, Results()) == "no marks"


def test_an_operator_that_is_not_there(cpu):
    with pytest.raises(SystemExit, match="no operator 'nothing'"):
        tables.filled("<!-- measured: nothing -->\n<!-- end -->", cpu, Results())
