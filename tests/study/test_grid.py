"""The grid: cells in order, each result whole in a file, resumption at the first missing, numbers over seeds."""

import json

import pytest

from sslfast.errors import DivergedError, IntegrityError, SslfastError, UsageError
from sslfast.run import Run
from sslfast.study.config import LabelFractionsConfig, SelfClassifierStudyConfig, TransferConfig, decided, parse_row
from sslfast.study.grid import Cell, grouped, mean, over_seeds, run_grid

CELLS = [Cell.of("arm", seed, share=share) for seed in (0, 1) for share in (0.1, 0.5)]


def test_a_grid_goes_on_at_the_first_missing_cell(tmp_path):
    worked = []

    def work(cell, place):
        worked.append(cell.name)
        place.mkdir(parents=True)
        (place / "state").write_text("heavy")
        if len(worked) == 3:
            raise KeyboardInterrupt
        return {"value": 10 * cell["share"] + cell.seed}

    with Run(tmp_path, {}) as run, pytest.raises(KeyboardInterrupt):
        run_grid(run, CELLS, work)
    assert (tmp_path / "cells" / CELLS[2].name / "state").exists()  # where its training goes on
    (tmp_path / "cells" / CELLS[2].name / "state").unlink()
    (tmp_path / "cells" / CELLS[2].name).rmdir()
    with Run(tmp_path, {}, resume=True) as run:
        done = run_grid(run, CELLS, work)
    assert worked == [CELLS[i].name for i in (0, 1, 2, 2, 3)]
    assert [one.result["value"] for one in done] == [1.0, 5.0, 2.0, 6.0]
    assert not [path for path in (tmp_path / "cells").iterdir() if path.is_dir()]


def test_a_training_that_diverges_is_a_result(tmp_path):
    def work(cell, place):
        if cell.seed:
            raise DivergedError("the loss became nan")
        return {"value": 1.0}

    with Run(tmp_path, {}) as run:
        done = run_grid(run, CELLS, work)
    assert [bool(one.diverged) for one in done] == [False, False, True, True]
    found = over_seeds(list(grouped(done).values())[0], "value")
    assert (found.value, found.deviation, found.seeds, found.of) == (1.0, None, 1, 2)
    assert "1 of 2 seeds" in found.percent()


def test_another_error_stops_the_grid_and_leaves_no_result(tmp_path):
    def work(cell, place):
        raise SslfastError("no disk left")

    with Run(tmp_path, {}) as run, pytest.raises(SslfastError, match="no disk"):
        run_grid(run, CELLS, work)
    assert not (tmp_path / "cells" / f"{CELLS[0].name}.json").exists()


def test_a_result_of_another_cell_is_refused(tmp_path):
    with Run(tmp_path, {}) as run:
        run_grid(run, CELLS[:1], lambda cell, place: {})
    path = tmp_path / "cells" / f"{CELLS[0].name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 7}))
    with Run(tmp_path, {}, resume=True) as run, pytest.raises(IntegrityError, match="seed 0"):
        run_grid(run, CELLS[:1], lambda cell, place: {})


def test_a_file_without_a_result_is_refused(tmp_path):
    with Run(tmp_path, {}) as run:
        run_grid(run, CELLS[:1], lambda cell, place: {})
    path = tmp_path / "cells" / f"{CELLS[0].name}.json"
    content = json.loads(path.read_text())
    del content["result"]
    path.write_text(json.dumps(content))
    with Run(tmp_path, {}, resume=True) as run, pytest.raises(IntegrityError, match="remove it"):
        run_grid(run, CELLS[:1], lambda cell, place: {})


def test_mean_and_deviation():
    found = mean([0.1, 0.3, None, 0.2])
    assert found.value == pytest.approx(0.2) and found.deviation == pytest.approx(0.1)
    assert found.percent() == "20.00 % ± 10.00 (3 of 4 seeds)"
    assert mean([]).percent() == "–"


def test_names_of_cells_are_file_names_and_differ():
    one = Cell.of("resnet50=../a b.pth", 0, learning_rate=1e-4)
    assert "/" not in one.name and " " not in one.name
    cells = [*CELLS, one, Cell.of("resnet50=../a-b.pth", 0, learning_rate=1e-4)]
    cells += [Cell.of(f"resnet50={'x' * 300}{end}", 0) for end in "ab"]
    assert len({cell.name for cell in cells}) == len(cells) and max(len(cell.name) for cell in cells) < 200
    assert CELLS[0].name == "arm_share-0.1_seed-0"


def test_seeds_may_grow_and_nothing_else_may_change():
    assert decided(LabelFractionsConfig(seeds=3), ["a"]) == decided(LabelFractionsConfig(), ["a"])
    assert decided(LabelFractionsConfig(epochs=11), ["a"]) != decided(LabelFractionsConfig(), ["a"])
    assert decided(LabelFractionsConfig(), ["a"]) != decided(LabelFractionsConfig(), ["b"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelFractionsConfig(labelled=()),
        lambda: LabelFractionsConfig(labelled=(0.5, 0.5)),
        lambda: LabelFractionsConfig(unlabelled=(1.5,)),
        lambda: LabelFractionsConfig(seeds=0),
        lambda: LabelFractionsConfig(arms=("moco",)),
        lambda: TransferConfig(modes=("frozen",)),
        lambda: TransferConfig(replay="paper004"),
        lambda: SelfClassifierStudyConfig(optimizer="adam"),
        lambda: SelfClassifierStudyConfig(classes=1),
        lambda: LabelFractionsConfig(val_fraction=1.0),
        lambda: TransferConfig(learning_rates=(0.0,)),
        lambda: TransferConfig(sweep_backbone=9),
        lambda: TransferConfig(batch_sizes=(1,)),
        lambda: SelfClassifierStudyConfig(backbones=("resnet18",)),
    ],
)
def test_options_that_make_no_sense(make):
    with pytest.raises(UsageError):
        make()


def test_the_papers_settings():
    label, transfer, classes = LabelFractionsConfig.paper(), TransferConfig.paper(), SelfClassifierStudyConfig.paper()
    assert label.data == classes.data == "cifar10" and transfer.data == "oxford-pets"
    assert label.threshold == 0.4 and label.batch_size == 128
    assert (transfer.learning_rates, transfer.batch_sizes, transfer.epochs) == ((1e-3, 1e-4), (32, 64), (10, 20, 50))
    assert transfer.sweep == (1e-3, 8e-4, 5e-4, 4e-4, 3.5e-4, 3e-4, 1e-4)
    assert [parse_row(text) for text in classes.backbones] == [
        ("resnet18-cifar", 1, 100), ("resnet18-cifar", 2, 100), ("alexnet", 2, 100), ("alexnet", 2, 200)
    ]  # fmt: skip
