"""What a pre-training came to, gathered from three run folders."""

import json

from sslfast.bench.pretraining import main


def test_three_folders_make_one_file_that_does_not_say_where_they_lay(tmp_path):
    run, scored, random, out = (tmp_path / name for name in ("run", "scored", "random", "out.json"))
    for folder in (run, scored, random):
        folder.mkdir()
    (run / "config.json").write_text(json.dumps({"data": "digits"}))
    (run / "result.json").write_text(json.dumps({"method": "simclr", "steps": 250}))
    lines = [{"step": step, "loss": float(step)} for step in range(250)] + [{"step": 249, "held_out_knn": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for folder, accuracy in ((scored, 0.9), (random, 0.4)):
        rows = [{"name": "k-NN", "test_accuracy": accuracy}]
        (folder / "result.json").write_text(json.dumps({"rows": rows, "seeds": [0], "backbone": str(folder)}))
    assert main([str(path) for path in (run, scored, random, out)]) == 0
    found = json.loads(out.read_text())
    assert found["data"] == "digits" and found["pretraining"]["method"] == "simclr"
    assert found["loss"]["steps_of_a_point"] == 3 and found["loss"]["points"][:2] == [1.0, 4.0]
    assert found["loss"]["points"][-1] == 249.0 and len(found["loss"]["points"]) == 84
    assert found["evaluation"]["rows"][0]["test_accuracy"] == 0.9
    assert found["random_backbone"]["rows"][0]["test_accuracy"] == 0.4
    assert str(tmp_path) not in out.read_text()
    assert main([]) == 2
