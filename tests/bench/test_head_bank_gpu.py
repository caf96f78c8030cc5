"""The timing of the head search on a GPU, as far as it runs without one."""

import json

from sslfast.bench import head_bank_gpu


def test_a_small_search_is_timed_and_written(tmp_path, capsys):
    plan = head_bank_gpu.Plan(
        "cpu", 1200, 16, units=192, heads=(2,), epochs=1, trials=2, parallel=(2,), dtypes=("float32",), repeats=1
    )
    assert head_bank_gpu.main([str(tmp_path / "found.json")], plan) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    (step,), (training,), (search,) = found["steps"], found["training"], found["search"]
    assert training["heads"] == 2 and training["seconds"] > 0
    assert step["steps"] == 19 and step["microseconds_per_step"] > 0
    assert search["trials"] == 2 and search["seconds"] > 0 and 0 <= search["best"] <= 1
    assert found["machine"]
    assert capsys.readouterr().out.count("\n") >= 2


def test_without_optuna_or_the_store_the_rest_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(head_bank_gpu, "find_spec", lambda name: None)
    plan = head_bank_gpu.Plan("cpu", 640, 16, units=192, heads=(1,), dtypes=("float32",), repeats=1)
    assert head_bank_gpu.main([str(tmp_path / "found.json")], plan) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps"] and "_store" in found["training"] and "optuna" in found["search"]


def test_it_asks_for_a_file(capsys):
    assert head_bank_gpu.main([]) == 2
    assert "usage" in capsys.readouterr().err
