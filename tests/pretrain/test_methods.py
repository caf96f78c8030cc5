"""Every method: it learns, it leaves what it trained, and its own rules hold."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from quick import QUICK, SIZE, config, digits
from safetensors.torch import load_file
from torch.nn import functional as F

from sslfast.data import holdout
from sslfast.errors import DataError, IntegrityError, SslfastError, UsageError
from sslfast.models import load_backbone
from sslfast.models.autoencoder import Decoder, Encoder
from sslfast.pretrain import load_method, pretrain
from sslfast.pretrain.config import CONFIGS, config_of
from sslfast.pretrain.online import Probe
from sslfast.pretrain.training import Training
from sslfast.run import Run

CPU = torch.device("cpu")


def trained(folder, options, images=None):
    with Run(folder, {}, resume=True) as run:
        return pretrain(images or digits(), options, run, image_size=SIZE, device="cpu"), run.metrics()


def steps_of(method, count, images=None, **changes):
    """Do some steps by hand."""
    training = Training(images or digits(), config(method, **changes), SIZE, CPU)
    for step, parts in enumerate(training.feed.steps(0, count)):
        yield training, training.step(step, parts)


@pytest.mark.parametrize("method", QUICK)
def test_it_learns_and_leaves_what_it_trained(method, tmp_path):
    options = config(method, epochs=4)
    backbone, lines = trained(tmp_path / "run", options)
    losses = [line["loss"] for line in lines]
    assert len(losses) == 20 and np.mean(losses[-3:]) < losses[0] - 0.02 * abs(losses[0])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        result["method"] == method and result["steps"] == 20 and result["loss"] == pytest.approx(losses[-1], abs=1e-5)
    )
    made, again = load_method(tmp_path / "run")
    assert again.fingerprint() == backbone.fingerprint() == result["fingerprint"]
    kept = load_file(tmp_path / "run" / "method.safetensors")
    state = made.state_dict()
    assert kept and all(torch.equal(state[key], value) for key, value in kept.items())
    assert config_of(method, json.loads(json.dumps(asdict(options)))) == options


def test_every_config_has_a_method():
    assert list(CONFIGS) == list(QUICK)


def test_the_prototypes_have_length_one_and_are_frozen_at_first():
    seen = []
    for training, _ in steps_of("swav", 7, queue=0):
        seen.append(training.method.prototypes.weight.detach().clone())
    normed = F.normalize(seen[0], dim=1)
    for weight in seen[:5]:  # an epoch has 5 steps
        assert torch.allclose(weight, normed, atol=1e-6)
    assert not torch.allclose(seen[5], normed, atol=1e-4)
    before = F.normalize(seen[5], dim=1)
    moved = (seen[6] - before).abs().max()
    assert 0 < moved < 0.02, "the weights were not brought to length 1 before the step"


def test_the_queue_holds_the_newest_projections_and_is_used_once_full(monkeypatch):
    import sslfast

    given, calls = [], []
    loss = sslfast.swav_loss

    def watched(high, low, queue=None, **more):
        calls.append(None if queue is None else [one.shape for one in queue])
        return loss(high, low, queue, **more)

    monkeypatch.setattr(sslfast, "swav_loss", watched)
    for training, _ in steps_of("swav", 6, queue=100, queue_from=0.0):
        given.append(training.method.queue.rows.clone())
    assert calls == [None, None] + [[(100, 24), (100, 24)]] * 4
    assert torch.equal(given[5][:, 64:], given[4][:, :36])
    assert torch.allclose(given[5].norm(dim=2), torch.ones(2, 100), atol=1e-5)


def test_the_queue_waits_for_its_epoch():
    filled = [training.method.queue.filled for training, _ in steps_of("swav", 4, queue_from=0.4)]
    assert filled == [0, 0, 64, 128]


def test_classifiers_are_directions_of_length_one_without_bias():
    training = Training(digits(), config("self-classifier"), SIZE, CPU)
    for classifier in training.method.classifiers:
        assert classifier.bias is None
        assert torch.allclose(classifier.weight.norm(dim=1), torch.ones(len(classifier.weight)), atol=1e-5)
        assert classifier.parametrizations.weight.original0.requires_grad


@pytest.mark.parametrize(
    ("layers", "kinds"), [(0, []), (1, ["Linear"]), (2, ["Linear", "BatchNorm1d", "LeakyReLU", "Linear"])]
)
def test_the_heads_layers_are_counted_as_the_official_code_does(layers, kinds):
    training = Training(digits(), config("self-classifier", mlp_layers=layers, neighbours=0), SIZE, CPU)
    found = [type(layer).__name__ for layer in training.method.head.children()]
    assert found == kinds
    width = 16 if layers else 128
    assert training.method.classifiers[0].weight.shape == (10, width)


def test_the_first_view_is_replaced_by_its_neighbour():
    training = Training(digits(), config("self-classifier", neighbours=8, policy="simclr"), SIZE, CPU)
    method = training.method
    method.queue.rows.copy_(F.normalize(torch.randn(1, 8, 16), dim=2))
    method.queue.filled = 8
    z = torch.randn(12, 16, requires_grad=True)
    seen = []
    for classifier in method.classifiers:
        classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    method.loss((z, 6), None).backward()
    assert all(any(torch.equal(row, held) for held in method.queue.rows[0]) for row in seen[0][:6])
    assert torch.equal(z.grad[:6], torch.zeros(6, 16)) and z.grad[6:].abs().sum() > 0


def test_classes_of_a_trained_self_classifier(tmp_path):
    trained(tmp_path / "run", config("self-classifier", epochs=1))
    method, backbone = load_method(tmp_path / "run")
    x = backbone.preprocess(torch.from_numpy(digits(10).images(np.arange(10))))
    assert method.logits(x).shape == (10, 10) and method.logits(x, 1).shape == (10, 20)


@pytest.mark.parametrize("size", [8, 13, 28, 32])
def test_an_image_of_any_size_is_coded_and_rebuilt(size):
    encoder, decoder = Encoder(), Decoder()
    x = torch.randn(2, 3, size, size)
    assert encoder(x).shape == (2, encoder.features)
    rebuilt = decoder(encoder.maps(x), (size, size))
    assert rebuilt.shape == x.shape and rebuilt.min() >= 0 and rebuilt.max() <= 1


@pytest.mark.parametrize("kind", ["batch", "image"])
def test_the_error_is_a_root_of_means(kind):
    method = Training(digits(), config("autoencoder", rmse=kind), SIZE, CPU).method
    rebuilt, wanted = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    means = ((rebuilt - wanted) ** 2).flatten(1).mean(1)
    expected = means.mean().sqrt() if kind == "batch" else means.sqrt().mean()
    assert method.loss((rebuilt, wanted), None) == pytest.approx(float(expected), rel=1e-5)
    same = wanted.clone().requires_grad_()
    method.loss((same, wanted), None).backward()
    assert same.grad.isfinite().all()


def test_views_apart_have_statistics_of_their_own():
    together, apart = (Training(digits(), config("simclr", views_apart=how), SIZE, CPU) for how in (False, True))
    ((batch,),) = apart.feed.steps(0, 1)
    seen = []
    for view in batch.views[0].chunk(2):
        seen.append(apart.method.projector(apart.method.network(apart.method.normalised(view))))
    assert torch.allclose(apart.method.embed(batch.views), torch.cat(seen), atol=1e-5)
    assert not torch.allclose(together.method.embed(batch.views), torch.cat(seen), atol=1e-3)


def test_freed_memory_is_kept_for_a_while_only():
    from sslfast.memory import freed_memory_kept

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with freed_memory_kept() as kept:
        if not kept:
            pytest.skip("this C library has no such option")
        before = resident()
        held = torch.ones(64 << 20, dtype=torch.uint8)
        del held
        assert resident() - before > 48 << 20
    assert resident() - before < 16 << 20


def test_parts_of_a_batch_add_up():
    """A mean over rows does not depend on the parts, where no batch statistics do."""
    losses = []
    for parts in (1, 3):
        training = Training(digits(), config("supervised", accumulate=parts), SIZE, CPU)
        training.method.eval()
        (batch,) = training.feed.steps(0, 1)
        losses.append(float(training.step(0, batch)))
        gradient = training.method.classifier.weight.grad.clone()
        losses.append(gradient)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert torch.allclose(losses[1], losses[3], atol=1e-6)


def test_the_average_is_what_is_kept(tmp_path):
    training = Training(digits(), config("simclr", ema=0.75), SIZE, CPU)
    name = "conv1.weight"
    expected = None
    for step, parts in enumerate(training.feed.steps(0, 4)):
        training.step(step, parts)
        weight = training.method.network.state_dict()[name].clone()
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    assert torch.allclose(training.network.state_dict()[name], expected, atol=1e-6)
    backbone, _ = trained(tmp_path / "run", config("simclr", ema=0.75))
    plain, _ = trained(tmp_path / "plain", config("simclr"))
    assert backbone.fingerprint() != plain.fingerprint()


def test_probes_are_scored_on_images_that_are_not_trained_on(tmp_path):
    images = digits()
    options = config("simclr", epochs=3, probe_every=2, probe_fraction=0.25)
    _, lines = trained(tmp_path / "run", options, images)
    probes = [line for line in lines if "held_out_knn" in line]
    assert [line["epoch"] for line in probes] == [2, 3]  # and at the end
    assert all(0.2 < line["held_out_knn"] <= 1 and 0.2 < line["held_out_linear"] <= 1 for line in probes)
    rest, held = holdout(images.labels, 0.25, 0)
    assert sum(line["images"] for line in lines if "loss" in line) == 3 * len(rest)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == len(rest) and result["held_out_knn"] == probes[-1]["held_out_knn"]


def test_a_probe_does_not_change_the_training(tmp_path):
    network = load_backbone("resnet-small", preprocess=None)
    network.preprocess = trained(tmp_path / "run", config("simclr", epochs=1))[0].preprocess
    images = digits()
    probe = Probe(images.subset(range(200)), images.subset(range(200, 320)), network.preprocess)
    network.network.train()
    before = {key: value.clone() for key, value in network.network.state_dict().items()}
    drawn = torch.get_rng_state()
    scores = probe(network.network, CPU, torch.float32)
    assert network.network.training and torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[key]) for key, value in network.network.state_dict().items())
    assert scores["knn"] > 0.5  # digits are easy, even for random weights
    assert scores == probe(network.network, CPU, torch.float32)


def test_a_loss_that_becomes_nan_keeps_the_last_good_state(tmp_path, monkeypatch):
    step = Training.step

    def bad(self, number, parts):
        return torch.tensor(float("nan")) if number == 6 else step(self, number, parts)

    monkeypatch.setattr(Training, "step", bad)
    with Run(tmp_path / "run", {}) as run, pytest.raises(SslfastError, match=r"nan at step 6 .*before step 6 is kept"):
        pretrain(digits(), config("simclr"), run, image_size=SIZE, save_seconds=0.0)
    kept = load_file(tmp_path / "run" / "training.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert not (tmp_path / "run" / "backbone.safetensors").exists()
    monkeypatch.undo()
    _, lines = trained(tmp_path / "run", config("simclr"))
    assert [line["step"] for line in lines] == list(range(10))


@pytest.mark.parametrize("when", [4, 9])
def test_weights_that_became_nan_are_not_saved(when, tmp_path, monkeypatch):
    step = Training.step

    def bad(self, number, parts):
        loss = step(self, number, parts)
        if number == when:  # 9: nothing comes after it
            self.method.projector[0].weight.data[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(Training, "step", bad)
    with (
        Run(tmp_path / "run", {}) as run,
        pytest.raises(SslfastError, match=rf"step {when} .*before step {when} is kept"),
    ):
        pretrain(digits(), config("simclr"), run, image_size=SIZE, save_seconds=0.0)
    kept = load_file(tmp_path / "run" / "training.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert not (tmp_path / "run" / "backbone.safetensors").exists()


def test_a_batch_larger_than_the_set_is_the_set(tmp_path):
    _, lines = trained(tmp_path / "run", config("barlow-twins", batch_size=1000, epochs=2), digits(50))
    assert [line["images"] for line in lines] == [50, 50]
    assert "a batch of 1000 is more than the set" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("simclr", {"policy": "supervised"}, "simclr takes two views"),
        ("supervised", {"policy": "x"}, "unknown view plan"),
        ("swav", {"policy": "supervised"}, "two views or more"),
    ],
)
def test_views_that_are_not_the_methods_are_one_line(method, changes, message, tmp_path):
    with Run(tmp_path / "run", {}) as run, pytest.raises(UsageError, match=message):
        pretrain(digits(), config(method, **changes), run, image_size=SIZE)


def test_views_that_are_too_small_for_a_backbone():
    with pytest.raises(UsageError, match=r"alexnet cannot take views of 16 pixels .*larger --image-size"):
        Training(digits(8), config("simclr", backbone="alexnet"), SIZE, CPU)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("simclr", {"accumulate": 0}),
        ("simclr", {"accumulate": 33}),
        ("simclr", {"optimizer": "adam"}),
        ("simclr", {"compile": "max"}),
        ("simclr", {"ema": 1.0}),
        ("simclr", {"momentum": -0.1}),
        ("simclr", {"trust": 0.0}),
        ("simclr", {"final_rate": 2.0}),
        ("simclr", {"probe_every": -1}),
        ("simclr", {"probe_fraction": 1.0}),
        ("swav", {"prototypes": 0}),
        ("swav", {"epsilon": 0.0}),
        ("swav", {"freeze_epochs": -1.0}),
        ("barlow-twins", {"redundancy": -1.0}),
        ("barlow-twins", {"scale": 0.0}),
        ("self-classifier", {"classes": ()}),
        ("self-classifier", {"classes": (10, 1)}),
        ("self-classifier", {"mlp_layers": -1}),
        ("autoencoder", {"backbone": "resnet-small"}),
        ("autoencoder", {"rmse": "pixel"}),
        ("autoencoder", {"dropout": 1.5}),
        ("supervised", {"label_smoothing": -0.1}),
    ],
)
def test_options_that_make_no_sense(method, changes):
    with pytest.raises(UsageError) as error:
        config(method, **changes)
    assert "\n" not in str(error.value)


def test_labels_are_asked_for_where_they_are_needed(tmp_path, monkeypatch):
    images = digits()
    monkeypatch.setattr(images, "labels", None)
    with Run(tmp_path / "run", {}) as run:
        with pytest.raises(DataError, match="needs a label for every image"):
            pretrain(images, config("supervised"), run, image_size=SIZE)
        with pytest.raises(DataError, match="without labels"):
            pretrain(images, config("simclr", probe_every=1), run, image_size=SIZE)


def test_a_method_of_another_backbone_is_refused(tmp_path):
    trained(tmp_path / "one", config("supervised", epochs=1))
    trained(tmp_path / "two", config("supervised", epochs=1, seed=1))
    (tmp_path / "one" / "method.safetensors").replace(tmp_path / "two" / "method.safetensors")
    with pytest.raises(IntegrityError, match="another backbone"):
        load_method(tmp_path / "two")
    with pytest.raises(SslfastError, match="no finished pre-training"):
        load_method(tmp_path / "one")


def test_a_network_is_compiled_as_asked(tmp_path, monkeypatch):
    asked = []
    compiled = torch.nn.Module.compile

    def eagerly(self, mode):  # the graph alone: generating code for it takes longer than all of this
        asked.append(mode)
        compiled(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    plain, _ = trained(tmp_path / "plain", config("simclr", epochs=1, batch_size=160))
    made, _ = trained(tmp_path / "made", config("simclr", epochs=1, batch_size=160, compile="reduce-overhead"))
    assert asked == ["reduce-overhead"] and made.fingerprint() == plain.fingerprint()
