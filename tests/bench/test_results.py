import json

import pytest

from sslfast.bench.results import Results, identify
from sslfast.errors import DataError


@pytest.fixture
def file(tmp_path, row, machine):
    results = Results(tmp_path / "rows.jsonl")
    key = results.enter(*machine)
    for contender in ("sslfast", "lightly"):
        for mode in ("forward", "both"):
            results.put(row(contender=contender, mode=mode, machine=key))
    results.save()
    return results


def test_a_file_is_read_as_it_was_written(file):
    again = Results(file.path)
    assert list(again.rows()) == list(file.rows()) and again.machines == file.machines
    text = file.path.read_text()
    again.save()
    assert file.path.read_text() == text
    assert [("machine" in one, "op" in one) for one in map(json.loads, text.splitlines())][0] == (True, False)


def test_a_new_row_takes_the_place_of_the_old_one(file, row, machine):
    key = file.enter({**machine[0], "build": "new"}, machine[1])
    file.put(row(machine=key, median=2.0))
    assert [found["median_ms"] for found in file.rows(contender="sslfast", mode="both")] == [2.0]
    assert len(list(file.rows())) == 4 and len(file.machines) == 2


def test_a_contender_has_numbers_or_a_reason(file, row, machine):
    skipped = {name: row()[name] for name in ("op", "size", "options", "dtype", "device", "allocator")}
    skipped |= {"contender": "lightly", "skipped": "not installed", "machine": next(iter(file.machines))}
    file.put(skipped)
    assert list(file.rows(contender="lightly")) == [skipped]
    file.put(row(contender="lightly", machine=skipped["machine"]))
    assert [found["mode"] for found in file.rows(contender="lightly")] == ["both"]


def test_a_better_limit_lowers_every_floor(file, machine):
    before = [found["floor_ms"] for found in file.rows()]
    assert before == [1.0] * 4 and all(found["fraction"] == 1.0 for found in file.rows())
    faster = {"cpu float32": {**machine[1]["cpu float32"], "operations_per_s": 2e12, "bytes_per_s": 1.0}}
    file.enter(machine[0], faster)
    assert [found["floor_ms"] for found in file.rows()] == [0.5] * 4
    assert next(iter(file.machines.values()))["limits"]["cpu float32"]["bytes_per_s"] == 1e10


def test_a_machine_is_what_does_not_change_from_run_to_run(machine):
    one = machine[0]
    assert identify(one) == identify({**one, "load": [9, 9, 9], "limits": {}, "commit": "another name"})
    assert identify(one) != identify({**one, "build": "x"}) != identify({**one, "threads": 1})


def test_machines_without_rows_are_left_out(file, machine):
    file.enter({**machine[0], "threads": 1}, {})
    file.save()
    assert len(Results(file.path).machines) == 1


def test_dropping_an_operator(file, row):
    file.put(row(op="sinkhorn", machine=next(iter(file.machines))))
    file.drop("nt_xent", "cuda")
    assert len(list(file.rows())) == 5
    file.drop("nt_xent", "cpu")
    assert {found["op"] for found in file.rows()} == {"sinkhorn"}


@pytest.mark.parametrize("text", ["no json", "[1, 2]", '{"no": "machine"}', '{"op": "nt_xent", "machine": "x"}'])
def test_something_else_is_refused(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(DataError, match="rows.jsonl"):
        Results(path)
