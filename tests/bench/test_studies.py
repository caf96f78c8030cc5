"""A study's results file: the command that makes it again, and nothing that differs from run to run."""

import json
from dataclasses import replace

from sslfast.bench.studies import command, main
from sslfast.study.config import LabelFractionsConfig, TransferConfig, decided


def kept(config):
    return json.loads(json.dumps(decided(config, [])))


def test_the_command_has_what_is_not_the_default():
    assert command(kept(LabelFractionsConfig()), 1) == "sslfast study label-fractions"
    config = TransferConfig(
        data="cifar10", backbones=("resnet20=/some/where/x.pth", "resnet20"), modes=("transfer",), epochs=(15,)
    )
    words = "sslfast study transfer --data cifar10 --seeds 3 --backbones resnet20=x.pth resnet20 --modes transfer"
    assert command(kept(config), 3) == f"{words} --epochs 15"
    config = replace(LabelFractionsConfig(), supervised=False, dropout=0.5)
    assert command(kept(config), 1) == "sslfast study label-fractions --no-supervised --dropout 0.5"


def test_a_folder_makes_a_file_without_times_and_places(tmp_path):
    folder, out = tmp_path / "study", tmp_path / "out.json"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(kept(LabelFractionsConfig(images=10))))
    rows = [{"arm": "a", "test_f1": 0.5, "seconds": 3.0, "time_to_accuracy": 1.0, "pretrain_seconds": 2.0}]
    (folder / "table.json").write_text(json.dumps({"seeds": [0], "rows": rows}))
    assert main([str(folder), str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["table"] == {"seeds": [0], "rows": [{"arm": "a", "test_f1": 0.5}]}
    assert found["command"] == "sslfast study label-fractions --images 10" and found["machine"]["cores"] >= 1
    assert str(tmp_path) not in out.read_text()
    assert main([]) == 2
