import json
import subprocess
import sys
import textwrap

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sslfast.search import journal
from sslfast.search.journal import (
    CREATE_STUDY,
    CREATE_TRIAL,
    DELETE_STUDY,
    OPERATIONS,
    REPORT,
    JournalBackend,
    journal_backend,
    repair_journal,
)
from sslfast.search.storage import open_storage


def line(code, worker="a", **more):
    return json.dumps({"op_code": code, "worker_id": f"{worker}-17", **more}).encode() + b"\n"


WHOLE = [
    line(CREATE_STUDY, study_name="x"),
    line(CREATE_TRIAL, study_id=0, user_attrs={"number": 0}),
    line(7, trial_id=0),
    line(6, trial_id=0),
    line(CREATE_TRIAL, study_id=0, user_attrs={"number": 1}),
    line(6, trial_id=1),
]

SHARED = [
    line(CREATE_STUDY, study_name="x"),
    line(CREATE_STUDY, "b", study_name="x"),  # it was there already
    line(CREATE_TRIAL, study_id=0, user_attrs={"slot": 0}),
    line(CREATE_TRIAL, "b", study_id=0, user_attrs={"slot": 1}),
    line(REPORT, "b", trial_id=1),
    line(REPORT, trial_id=0),
    line(CREATE_STUDY, study_name="random"),
    line(CREATE_TRIAL, study_id=1, user_attrs={"slot": 0}),
    line(REPORT, trial_id=2),
    line(DELETE_STUDY, study_id=1),
    line(CREATE_STUDY, study_name="random"),
    line(CREATE_TRIAL, study_id=2, user_attrs={"number": 0}),
]


def test_the_codes_are_those_of_optuna():
    from optuna.storages.journal._storage import JournalOperation as Operation

    assert {int(operation) for operation in Operation} == set(OPERATIONS)
    theirs = (Operation.CREATE_STUDY, Operation.DELETE_STUDY, Operation.CREATE_TRIAL)
    assert theirs == (CREATE_STUDY, DELETE_STUDY, CREATE_TRIAL)
    assert Operation.SET_TRIAL_INTERMEDIATE_VALUE == REPORT


def test_a_whole_journal_is_left_alone(tmp_path):
    path = tmp_path / "journal.log"
    assert repair_journal(path).lost == 0
    path.write_bytes(b"".join(WHOLE))
    before = path.stat()
    assert repair_journal(path).copy is None
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    ("content", "kept", "lost"),
    [
        (b"".join(WHOLE) + b'{"op_code": 6, "tri', WHOLE, 1),  # torn tail
        (b"".join(WHOLE)[:-1], WHOLE[:-1], 1),  # only the newline is missing
        (b"".join(WHOLE) + b"\0" * 64, WHOLE, 1),  # the file system's zeros after a power cut
        (b"".join([*WHOLE[:2], b"\n", *WHOLE[2:]]), WHOLE, 1),  # blank line
        (b"".join([*WHOLE[:2], WHOLE[2][:9] + WHOLE[3], *WHOLE[4:]]), [*WHOLE[:2], *WHOLE[4:]], 1),  # glued lines
        (b"".join([WHOLE[0], b"{]\n", *WHOLE[2:]]), WHOLE[:1], 5),  # the line that made trial 0
        (b"".join([b"\xff\xfe\n", *WHOLE[1:]]), [], 6),  # the line that made the study
        (b"".join(WHOLE) + b"17\n" + b'{"op_code": 99}\n{"op_code": []}\n', WHOLE, 3),  # JSON, but not Optuna's
        (b"".join(SHARED) + b'{"op_code": 6, "tri', SHARED, 1),  # no trial is numbered
        (b"".join([*SHARED[:4], SHARED[4][:9] + b"\n", *SHARED[5:]]), [*SHARED[:4], *SHARED[5:]], 1),
        (b"".join([*SHARED[:4], b"{]\n", *SHARED[4:]]), SHARED, 1),  # a trial that nobody saw
        (b"".join([*SHARED[:2], b"{]\n", *SHARED[3:]]), SHARED[:2], 10),  # the line that made trial 0 of all
        (b"".join([*SHARED[:6], b"{]\n", *SHARED[7:]]), SHARED[:6], 6),  # the line that made the second study
    ],
)
def test_damage_is_dropped_and_the_old_file_kept(tmp_path, content, kept, lost):
    path = tmp_path / "journal.log"
    path.write_bytes(content)
    repair = repair_journal(path)
    assert path.read_bytes() == b"".join(kept)
    assert (repair.lost, repair.kept) == (lost, len(kept))
    assert repair.copy.read_bytes() == content
    assert str(lost) in repair.describe()
    assert repair_journal(path).lost == 0


def test_what_a_killed_process_left_of_its_lock_is_removed(tmp_path):
    for name in ("journal.log.lock", "journal.log.lock1d519444.rename", "journal.log.damaged-1", "other.lock"):
        (tmp_path / name).touch()
    journal_backend(tmp_path / "journal.log")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "journal.log") == [
        "journal.log.damaged-1",
        "other.lock",
    ]


def shared_study(path):
    study = optuna.create_study(storage=open_storage(str(path)), study_name="x", load_if_exists=True)
    return study, study.ask()


def test_a_line_that_another_process_was_killed_in_costs_that_line_alone(tmp_path, capsys):
    path = tmp_path / "j.log"
    study, trial = shared_study(path)
    with path.open("ab") as torn:
        torn.write(b'{"op_code": 6, "tri')
    for step in range(5):
        trial.report(step, step)
    other, _ = shared_study(path)
    study.tell(trial, 1.0)
    assert other.trials[0].intermediate_values == dict(enumerate(range(5))) and other.trials[0].value == 1.0
    assert [found.number for found in study.trials] == [0, 1]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("cannot be read") == 2  # once by each of the two storages
    assert "j.log" in said and "1 line" in said


def test_a_whole_line_without_its_end_counts_once_somebody_ends_it(tmp_path, capsys):
    path = tmp_path / "j.log"
    study, trial = shared_study(path)
    trial.report(0.5, 0)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    other, _ = shared_study(path)
    assert [found.intermediate_values for found in other.trials] == [{0: 0.5}, {}]
    assert path.read_bytes().startswith(content)
    assert "cannot be read" not in capsys.readouterr().err


def test_a_line_that_is_being_written_is_waited_for(tmp_path, capsys):
    backend = JournalBackend(tmp_path / "j.log")
    backend.append_logs([{"op_code": 1}])
    assert list(backend.read_logs(0)) == [{"op_code": 1}]
    with (tmp_path / "j.log").open("ab") as other:
        other.write(b'{"op_code":')
        other.flush()
        assert list(backend.read_logs(1)) == []
        other.write(b" 2}\n")
    assert list(backend.read_logs(1)) == [{"op_code": 2}]
    assert list(backend.read_logs(0)) == [{"op_code": 1}, {"op_code": 2}]
    assert not capsys.readouterr().err


def test_a_reader_that_stopped_goes_on_behind_what_it_had(tmp_path, capsys):
    path = tmp_path / "j.log"
    path.write_bytes(b'{"op_code": 1}\n{]\n{"op_code": 2}\n\n{"op_code": 3}\n')
    backend = JournalBackend(path)
    assert next(backend.read_logs(0)) == {"op_code": 1}
    assert list(backend.read_logs(1)) == [{"op_code": 2}, {"op_code": 3}]
    assert list(JournalBackend(path).read_logs(2)) == [{"op_code": 3}]
    assert " ".join(capsys.readouterr().err.split()).count("2 lines") == 2


def test_optuna_reads_what_is_written_and_the_other_way_round(tmp_path):
    path = tmp_path / "j.log"
    _, trial = shared_study(path)
    plain = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="x", storage=plain)
    study.tell(trial.number, 0.5)
    trial = study.ask()
    study.tell(trial, 0.25)
    found = optuna.load_study(study_name="x", storage=open_storage(str(path)))
    assert [trial.value for trial in found.trials] == [0.5, 0.25]


def test_many_processes_that_are_killed_while_they_write_spoil_nothing(tmp_path):
    """Each leaves a torn piece of random length in place of its last line, as a power cut or a full disk does."""
    path = tmp_path / "j.log"
    script = textwrap.dedent(
        """
        import os, random, sys
        from pathlib import Path
        from sslfast.search import journal
        path, number = Path(sys.argv[1]), int(sys.argv[2])
        backend, moments = journal.JournalBackend(path), random.Random(number)
        for count in range(40):
            backend.append_logs([{"op_code": 1, "number": number, "count": count}])
            list(backend.read_logs(0))
        with backend._locked(), open(path, "ab") as torn:
            torn.write(b'{"op_code": 6, "trial_id": 0}'[:moments.randrange(1, 28)])
        os._exit(9)
        """
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number)], stderr=subprocess.PIPE)
        for number in range(3)
    ]
    assert [worker.communicate() and worker.returncode for worker in workers] == [9, 9, 9]
    JournalBackend(path).append_logs([{"op_code": 2}])
    found = list(JournalBackend(path).read_logs(0))
    assert found[-1] == {"op_code": 2} and len(found) == 121
    for number in range(3):
        assert [log["count"] for log in found if log.get("number") == number] == list(range(40))


def test_the_lock_leads_to_the_journal_wherever_that_is_mounted(tmp_path, monkeypatch):
    """Optuna looks at the age of what the lock links to; where that is nowhere, it waits for ever."""
    monkeypatch.chdir(tmp_path)
    storage = open_storage("sub/j.log")
    with storage._backend._locked():
        (tmp_path / "sub").rename(tmp_path / "mounted")
        assert (tmp_path / "mounted" / "j.log.lock").samefile(tmp_path / "mounted" / "j.log")
        (tmp_path / "mounted").rename(tmp_path / "sub")
    assert not (tmp_path / "sub" / "j.log.lock").is_symlink()


def test_a_full_disk_while_appending_is_an_error_of_the_disk(tmp_path, monkeypatch):
    backend = JournalBackend(tmp_path / "j.log")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        backend.append_logs([{"op_code": 1}])
    assert not (tmp_path / "j.log.lock").is_symlink()
