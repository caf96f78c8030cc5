"""The benchmark of whole steps: both sides train the same network on the same images, and the parts add up."""

import json

import pytest
import torch

from sslfast.bench import pretrain_step as case
from sslfast.pretrain.simclr import SimCLR
from sslfast.pretrain.training import Training

pytest.importorskip("lightly")
SIZE = (16, 16, 1)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(case, "STEPS", 2)


def test_both_do_every_step_on_every_image(monkeypatch):
    steps, losses = [], []
    step = Training.step

    def ours(self, number, parts):
        steps.append([(len(part.views[0]), part.views[0].shape[1:]) for part in parts])
        return step(self, number, parts)

    monkeypatch.setattr(Training, "step", ours)
    turn = case.ours(SIZE, False)
    turn()
    turn()
    assert steps == [[(32, (3, 16, 16))]] * 4
    rows = []
    embed = SimCLR.embed
    monkeypatch.setattr(SimCLR, "embed", lambda self, views: rows.append(self.apart) or embed(self, views))
    case.ours(SIZE, False)()
    case.ours(SIZE, False, together=True)()
    assert rows == [True, True, False, False]
    import lightly.loss

    loss = lightly.loss.NTXentLoss.forward
    monkeypatch.setattr(
        lightly.loss.NTXentLoss, "forward", lambda self, a, b: losses.append((a.shape, b.shape)) or loss(self, a, b)
    )
    for workers in (0, 1):
        losses.clear()
        case.lightly(SIZE, False, workers=workers)()
        assert losses == [((16, 128), (16, 128))] * 2


def test_both_train_the_same_weights():
    counts = []
    adamw = torch.optim.AdamW.__init__

    def watched(self, params, *args, **kwargs):
        groups = list(params)
        flat = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
        counts.append((sum(p.numel() for p in flat), kwargs["lr"]))
        adamw(self, groups, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "__init__", watched)
        case.ours(SIZE, False)
        case.lightly(SIZE, False, workers=0)
    assert counts[0] == counts[1]


def test_the_parts_add_up_to_the_step(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(case, "SIZES", (SIZE,))
    monkeypatch.setattr(case, "WORKERS", 0)
    assert case.main([str(tmp_path / "shares.json")]) == 0
    rows = json.loads((tmp_path / "shares.json").read_text())["rows"]
    names = {row["contender"] for row in rows}
    assert {"sslfast, float32", "lightly, float32", "lightly, no workers, float32"} <= names
    for row in rows:
        parts = {name: value for name, value in row["ms"].items() if name != "step"}
        assert set(parts) == {*case.PARTS, "rest"} and min(parts[name] for name in case.PARTS) > 0
        assert sum(parts.values()) == pytest.approx(row["ms"]["step"], abs=0.1)
        assert parts["rest"] < 0.5 * row["ms"]["step"]
    assert case.main([]) == 2


def test_operations_are_three_passes_over_two_views():
    assert case.operations((2, 32, 2)) == pytest.approx(2 * case.operations((1, 32, 2)))
    # ResNet-20: 41 million multiply-adds an image
    assert case.operations((1, 32, 2)) == pytest.approx(6 * 2 * 41e6, rel=0.05)
