import json

import pytest

from sslfast.search.journal import CREATE_STUDY, CREATE_TRIAL, OPERATIONS, journal_backend, repair_journal


def line(code, **more):
    return json.dumps({"op_code": code, **more}).encode() + b"\n"


WHOLE = [
    line(CREATE_STUDY),
    line(CREATE_TRIAL, user_attrs={"number": 0}),
    line(7, trial_id=0),
    line(6, trial_id=0),
    line(CREATE_TRIAL, user_attrs={"number": 1}),
    line(6, trial_id=1),
]


def test_the_codes_are_those_of_optuna():
    from optuna.storages.journal._storage import JournalOperation

    assert {int(operation) for operation in JournalOperation} == set(OPERATIONS)
    assert (JournalOperation.CREATE_STUDY, JournalOperation.CREATE_TRIAL) == (CREATE_STUDY, CREATE_TRIAL)


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
        (b"".join(WHOLE) + b"17\n" + b'{"op_code": 99}\n', WHOLE, 2),  # JSON, but nothing of Optuna's
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
