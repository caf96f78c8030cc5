import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sslfast.data import load
from sslfast.errors import DataError, IntegrityError, SslfastError, UsageError
from sslfast.nas import train as training
from sslfast.nas.config import NetworkConfig
from sslfast.nas.genotype import PUBLISHED, check, drawn, parse
from sslfast.nas.train import load_network, train_network
from sslfast.run import Run

TINY = NetworkConfig(channels=4, layers=3, epochs=2, batch_size=16, learning_rate=0.05)
CELLS = PUBLISHED["PDARTS"]


class Killed(Exception):
    pass


def trained(folder, kill_before=(), monkeypatch=None, config=TINY, data=None):
    own, count, waiting = training._step, 0, list(kill_before)

    def step(*arguments):
        nonlocal count
        if waiting and count == waiting[0]:
            waiting.pop(0)
            raise Killed
        count += 1
        return own(*arguments)

    if monkeypatch is not None:
        monkeypatch.setattr(training, "_step", step)
    while True:
        try:
            with Run(folder, {}, resume=True) as run:
                data = data or load("digits", "train").subset(range(48))
                return train_network(data, CELLS, config, run, device="cpu", save_seconds=0.0)
        except Killed:
            continue


def test_a_broken_training_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    want = trained(tmp_path / "unbroken")
    got = trained(tmp_path / "broken", (1, 4, 4), monkeypatch)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("unbroken", "broken")]
    assert lines[0] == lines[1] and lines[0].count("\n") == 6
    for name, value in want.network.state_dict().items():
        assert torch.equal(value, got.network.state_dict()[name]), name
    assert not (tmp_path / "broken" / "training.safetensors").exists()


def test_a_network_learns_and_is_read_again(tmp_path):
    data = load("digits", "train").subset(range(200))
    config = replace(TINY, epochs=6, policy="supervised", auxiliary=0.0, drop_path=0.0, channels=8)
    made = trained(tmp_path / "run", config=config, data=data)
    right = (made.predict(data).numpy() == data.labels).mean()
    assert right > 0.5  # one in ten by chance
    again = load_network(tmp_path / "run" / "network.safetensors")
    assert (again.genotype, again.classes, again.preprocess) == (made.genotype, made.classes, made.preprocess)
    assert torch.equal(again.predict(data, batch_size=64), made.predict(data, batch_size=64))


def test_schedules_are_the_papers():
    config = NetworkConfig()
    assert (config.learning_rate_at(0), config.drop_path_at(0)) == (0.025, 0)
    assert config.learning_rate_at(300) == pytest.approx(0.0125) and config.drop_path_at(300) == pytest.approx(0.15)


def test_what_cannot_be_trained_is_refused(tmp_path):
    data = load("digits", "train").subset(range(20))
    with Run(tmp_path / "run", {}) as run:
        with pytest.raises(UsageError, match="one view of an image, the plan simclr has 2"):
            train_network(data, CELLS, replace(TINY, policy="simclr"), run)
        with pytest.raises(DataError, match="at least 2 images"):
            train_network(data.subset([0]), CELLS, TINY, run)
        with pytest.raises(SslfastError, match="the loss became"):
            train_network(data, CELLS, replace(TINY, learning_rate=1e30, clip=0.0), run, device="cpu")
    for change, said in (({"drop_path": 1.0}, "drop_path must be"), ({"epochs": 0}, "epochs must be at least 1")):
        with pytest.raises(UsageError, match=said):
            replace(TINY, **change)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(SslfastError, match="there is no network"):
        load_network(tmp_path / "none.safetensors")
    path = tmp_path / "network.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(SslfastError, match="is no network that sslfast nas train wrote"):
        load_network(path)
    described = {"genotype": "DARTS_V1", "classes": json.dumps(["a", "b"]), "config": json.dumps({"channels": 4})}
    described["preprocess"] = json.dumps({"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3})
    save_file({"x": torch.zeros(1)}, path, metadata={"format": training.FORMAT, **described})
    with pytest.raises(IntegrityError, match="do not fit"):
        load_network(path)


def test_random_cells_are_cells():
    found = [drawn(seed) for seed in range(50)]
    for genotype in found:
        check(genotype)
        assert parse(str(genotype)) == genotype
        states = [state for _, state in genotype.normal]
        assert all(one != other for one, other in zip(states[::2], states[1::2], strict=True))
    assert drawn(3) == found[3] and len({str(genotype) for genotype in found}) == 50
    names = [name for genotype in found for name, _ in [*genotype.normal, *genotype.reduce]]
    assert len(set(names)) == 7 and all(70 < names.count(name) < 160 for name in set(names))
