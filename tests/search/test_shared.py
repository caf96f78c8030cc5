"""Several processes on one study, on every kind of storage: the budget is kept, and the dead poison nothing."""

import dataclasses
import operator
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from sslfast.errors import SslfastError, UsageError
from sslfast.search import HeadSpace, SearchResult, leases, search_heads
from sslfast.search import storage as storage_module
from sslfast.search import study as study_module
from sslfast.search.leases import Holder, Lease
from sslfast.search.sampler import make_sampler
from sslfast.search.storage import open_storage
from sslfast.search.study import STUDY_NAME
from sslfast.search.trials import EXCESS, Trials, given_up

SMALL = HeadSpace(units=(128, 256))
SCRIPT = Path(__file__).with_name("shared_search.py")


def search(digits, out, storage, **options):
    train, val = digits
    defaults = {"trials": 6, "epochs": 3, "parallel": 2, "dtype": "float32"}
    return search_heads(train, val, SMALL, out=out, storage=storage, **{**defaults, **options})


def trials_of(result):
    return [dataclasses.replace(trial, seconds=0.0, finished=0.0) for trial in result.trials]


def start(folder, storage, trials=8, epochs=6):
    words = [sys.executable, str(SCRIPT), str(folder), str(storage), str(trials), str(epochs)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


@pytest.fixture(params=["journal", "sqlite", "memory"])
def storage(request, tmp_path):
    if request.param == "memory":
        return InMemoryStorage()
    return str(tmp_path / "shared" / "study.log") if request.param == "journal" else f"sqlite:///{tmp_path}/trials.db"


def study_of(storage):
    return optuna.load_study(study_name=STUDY_NAME, storage=open_storage(storage))


def test_one_process_on_any_storage_finds_what_the_journal_of_its_folder_would(digits, tmp_path, storage):
    assert trials_of(search(digits, tmp_path / "a", storage)) == trials_of(search(digits, tmp_path / "b", None))
    # Whoever joins a finished study reads the same, and trains the winner once more for its own folder.
    joined = search(digits, tmp_path / "c", storage)
    assert trials_of(joined) == trials_of(SearchResult.load(tmp_path / "a"))
    assert (tmp_path / "c" / "head.safetensors").exists()


def foreign(trial, study, **lease):
    """Turn a trial into one that another machine trains."""
    mine = Holder().lease()
    attributes = {"slot": trial, "lease": {**mine, "host": "elsewhere", "boot": "other", "space": "other", **lease}}
    params = {"layers": 1, "units_0": 192, "learning_rate": 0.0123, "dropout": 0.3}
    if "units_1" in study.get_trials()[0].params:
        params |= {"units_1": 128, "units_2": 128}
    distributions = study.get_trials()[0].distributions
    distributions = {name: distributions[name] for name in params}
    study.add_trial(
        create_trial(state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes)
    )


def test_an_expired_trial_of_another_machine_is_failed_and_its_parameters_tried_again(digits, tmp_path, storage):
    search(digits, tmp_path / "a", storage, trials=4)
    study = study_of(storage)
    study.set_user_attr("search", {**study.user_attrs["search"], "trials": 6, **sampler_of(6)})
    foreign(4, study, until=time.time() - 1)
    result = search(digits, tmp_path / "b", storage, trials=6)
    assert result.trials[4].params["learning_rate"] == 0.0123
    assert [trial.state for trial in result.trials] == ["COMPLETE"] * 6
    every = study.get_trials()
    assert [trial.state for trial in every].count(TrialState.RUNNING) == 0
    assert "no sign of life" in every[4].user_attrs["given_up"] and every[4].state == TrialState.FAIL


def sampler_of(trials):
    return {"sampler": make_sampler("tpe", trials).describe()}


def test_a_living_trial_of_another_machine_is_left_to_it(digits, tmp_path, storage, monkeypatch):
    search(digits, tmp_path / "a", storage, trials=4)
    study = study_of(storage)
    study.set_user_attr("search", {**study.user_attrs["search"], "trials": 6, **sampler_of(6)})
    foreign(4, study, until=time.time() + 3600)

    looked = threading.Event()  # whether it still runs
    running = Trials.running

    def look(self):
        count = running(self)
        looked.set()
        return count

    monkeypatch.setattr(Trials, "running", look)
    monkeypatch.setattr(study_module, "POLL_SECONDS", 0.05)

    def finish():
        if looked.wait(60):
            study.tell(4, 0.999)

    other = threading.Thread(target=finish)
    other.start()
    result = search(digits, tmp_path / "b", storage, trials=6)
    other.join()
    assert result.best.number == 4 and result.best.value == 0.999  # its weights are made here once more
    assert (tmp_path / "b" / "head.safetensors").exists()


def test_of_two_attempts_at_a_slot_the_earlier_counts(digits, tmp_path):
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="maximize")
    one, two = (Trials(study, storage, 4, 2, alone=False) for _ in range(2))
    seen = two.current()
    two.current = lambda: (
        seen if len(study.get_trials()) < 2 else Trials.current(two)
    )  # it looks before the other writes
    sampler = make_sampler("random", 4)
    assert [trial.number for trial in one.take(SMALL, sampler, 0)] == [0, 1]
    taken = two.take(SMALL, sampler, 0)
    assert all(trial.user_attrs["slot"] >= 2 for trial in taken)
    counts = one.current()
    assert [trial.number for trial in counts.values()][:2] == [0, 1]
    for trial in study.get_trials():
        assert not given_up(trial) or trial.user_attrs["given_up"] == EXCESS
    one.close()
    assert all(given_up(trial) for trial in study.get_trials()[:2])


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_three_processes_make_the_budget_exactly_though_one_is_killed(tmp_path, kind):
    storage = tmp_path / "study.log" if kind == "journal" else f"sqlite:///{tmp_path}/trials.db"
    workers = [start(tmp_path / str(number), storage) for number in range(3)]
    moment = random.Random(kind).uniform(0, 1)
    opened = None
    while workers[0].poll() is None:
        try:
            opened = opened or study_of(str(storage))
            states = [trial.state for trial in opened.get_trials()]
        except (KeyError, SslfastError):
            states = []
        if TrialState.RUNNING in states:
            time.sleep(moment)
            break
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers[1:]] == [0, 0], said
    study = study_of(str(storage))
    counted = [trial for trial in study.get_trials() if not given_up(trial)]
    assert sorted(trial.user_attrs["slot"] for trial in counted) == list(range(8))
    assert {trial.state for trial in counted} == {TrialState.COMPLETE}
    for trial in study.get_trials():  # what was given up was tried again as it was
        if given_up(trial) and trial.user_attrs["given_up"] != EXCESS:
            slot = trial.user_attrs["slot"]
            assert [other.params for other in counted if other.user_attrs["slot"] == slot] == [trial.params]
    results = [SearchResult.load(tmp_path / str(number)) for number in (1, 2)]
    assert trials_of(results[0]) == trials_of(results[1])


def test_a_shared_journal_whose_tail_is_torn_is_mended_by_the_next_process(tmp_path):
    storage = tmp_path / "study.log"
    start(tmp_path / "a", storage, 2, 1).communicate(timeout=300)
    whole = storage.read_bytes()
    storage.write_bytes(whole + b'{"op_code": 6, "tri')
    other = start(tmp_path / "b", storage, 2, 1)
    said = " ".join(other.communicate(timeout=300)[1].split())
    assert other.returncode == 0 and "dropped 1 damaged line of the journal" in said
    assert storage.read_bytes().startswith(whole)
    assert trials_of(SearchResult.load(tmp_path / "a")) == trials_of(SearchResult.load(tmp_path / "b"))


def test_a_study_of_other_options_is_refused(digits, tmp_path, storage):
    search(digits, tmp_path / "a", storage)
    with pytest.raises(UsageError, match=r"was started with recipe.epochs=3, now it is 2; .*--study-name"):
        search(digits, tmp_path / "b", storage, epochs=2)
    assert search(digits, tmp_path / "c", storage, epochs=2, study_name="another").recipe["epochs"] == 2


def test_the_journal_of_another_searchs_folder_is_not_shared(digits, tmp_path):
    search(digits, tmp_path / "a", None)
    own = tmp_path / "a" / "journal.log"
    before = own.read_bytes()
    with pytest.raises(UsageError, match=r"which has it to itself; go on with it by --resume --out"):
        search(digits, tmp_path / "b", str(own))
    # Under another name it still has the trials of a search that nobody can join.
    copy = tmp_path / "copy.log"
    copy.write_bytes(before)
    with pytest.raises(UsageError, match=r"'sslfast-heads' has 6 trials of another program, or of a search that has"):
        search(digits, tmp_path / "c", str(copy), epochs=2)
    assert own.read_bytes() == before


def test_a_study_of_another_program_is_left_alone(digits, tmp_path, storage):
    opened = open_storage(storage)
    foreign = optuna.create_study(storage=opened, study_name=STUDY_NAME, direction="minimize")
    foreign.add_trial(create_trial(value=0.1))
    with pytest.raises(UsageError, match="it does not maximise; choose another --study-name"):
        search(digits, tmp_path / "a", storage)
    upwards = optuna.create_study(storage=opened, study_name="upwards", direction="maximize")
    upwards.add_trial(create_trial(value=0.1))
    with pytest.raises(UsageError, match="'upwards' has 1 trials of another program"):
        search(digits, tmp_path / "b", storage, study_name="upwards")
    assert not foreign.user_attrs and not upwards.user_attrs and len(upwards.trials) == 1


@pytest.mark.parametrize("content", [b"2026-01-01 started\n2026-01-01 stopped\n", b"no end of line"])
def test_a_file_that_is_no_journal_is_left_alone(digits, tmp_path, content):
    path = tmp_path / "app.log"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"app\.log is not a journal of Optuna"):
        search(digits, tmp_path / "a", str(path))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "app.log"] and path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b'{"op_c', b'{"op_code": 0, "stu'])
def test_a_journal_of_which_nothing_whole_is_left_begins_anew(digits, tmp_path, content):
    path = tmp_path / "study.log"
    path.write_bytes(content)
    assert len(search(digits, tmp_path / "a", str(path), trials=2).trials) == 2


def test_a_database_without_its_driver_names_it(digits, tmp_path):
    with pytest.raises(UsageError, match="driver that is not installed: pymssql; install it"):
        search(digits, tmp_path / "a", "mssql+pymssql://nobody@localhost/none")


def test_a_storage_that_does_not_answer_is_one_line(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(optuna.storages, "RDBStorage", lambda *words, **options: time.sleep(5))
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"did not answer within 0\.2 s"):
        search(digits, tmp_path / "a", "postgresql://nobody@192.0.2.1/x")
    assert time.monotonic() - began < 3


def test_a_damaged_database_is_one_line(digits, tmp_path):
    path = tmp_path / "trials.db"
    search(digits, tmp_path / "a", f"sqlite:///{path}", trials=2)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError, match=r"^--storage cannot be opened"):
        search(digits, tmp_path / "b", f"sqlite:///{path}", trials=2)


def test_a_database_that_fails_while_heads_are_trained_is_one_line(digits, tmp_path, monkeypatch):
    path = tmp_path / "trials.db"
    train = study_module.train_heads

    def damage(*arguments):
        path.write_bytes(path.read_bytes()[:2000])
        return train(*arguments)

    monkeypatch.setattr(study_module, "train_heads", damage)
    with pytest.raises(SslfastError, match=r"^the storage failed \(.*--resume continues once it is back$") as caught:
        search(digits, tmp_path / "a", f"sqlite:///{path}", trials=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@nowhere/trials",
        "postgresql://nowhere/trials?user=me&password=s3cret",
        "redis://:s3cret@nowhere:6379/0",
    ],
)
def test_a_password_is_written_nowhere(digits, tmp_path, monkeypatch, url):
    shared = InMemoryStorage()
    monkeypatch.setattr(study_module, "open_storage", lambda storage: shared)
    search(digits, tmp_path / "run", url, trials=2)
    for path in (tmp_path / "run").iterdir():
        assert b"s3cret" not in path.read_bytes()
    assert "nowhere" in (tmp_path / "run" / "config.json").read_text()
    search(digits, tmp_path / "run", url.replace("s3cret", "changed"), trials=2, resume=True)


def test_a_trial_given_up_while_its_notes_are_written_is_tried_again(digits, tmp_path, monkeypatch):
    note, stolen = Trials.note, []

    def steal(self, trial, **attributes):
        kept = note(self, trial, **attributes)
        if "seconds" in attributes and trial.user_attrs["slot"] == 1 and not stolen:
            stolen.append(trial.number)
            self._give_up(trial._trial_id, "another machine saw no sign of life")
        return kept

    monkeypatch.setattr(Trials, "note", steal)
    result = search(digits, tmp_path / "run", InMemoryStorage(), trials=2, pruner="halving")
    assert stolen and [trial.number for trial in result.trials] == [0, 1]
    assert "RUNNING" not in {trial.state for trial in result.trials}


def test_leases_end_with_their_process_with_their_machine_and_with_time():
    holder = Holder()
    lease = Lease.read(holder.lease())
    assert lease.expired() is None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert "is gone" in dataclasses.replace(lease, pid=dead.pid).expired()
    assert "is gone" in dataclasses.replace(lease, pid=1).expired()  # another process has the number
    assert "started anew" in dataclasses.replace(lease, boot="before").expired()
    assert dataclasses.replace(lease, until=time.time() - 1).expired() is None  # it lives: slow, or the machine slept
    container = dataclasses.replace(lease, space="another", pid=999_999_999)
    assert container.expired() is None  # its numbers of processes mean nothing here
    assert "no sign of life" in dataclasses.replace(container, until=time.time() - 1).expired()
    holder.end()
    assert "is gone" in lease.expired()
    assert Lease.read(None) is None and Lease.read({"pid": 1}) is None


def test_leases_are_renewed_while_an_epoch_lasts_and_not_after_the_search(monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.4)
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="maximize")
    trials = Trials(study, storage, 4, 2, alone=False)
    jobs = trials.take(SMALL, make_sampler("random", 4), 0)

    def until():
        return [trial.user_attrs["lease"]["until"] for trial in study.get_trials()]

    first, deadline = until(), time.monotonic() + 30
    while not all(map(operator.gt, until(), first)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(operator.gt, until(), first))
    trials.finish(jobs[0], TrialState.COMPLETE, 0.5)
    keeper = trials.holder._keeper
    assert keeper.daemon  # a process that ends does not wait for it
    trials.close()
    assert not keeper.is_alive()
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE, TrialState.FAIL]


def test_a_renewal_that_fails_is_tried_again(monkeypatch):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.04)
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="maximize")
    trials, tried = Trials(study, storage, 2, 1, alone=False), threading.Semaphore(0)

    def fail(*arguments):
        tried.release()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "set_trial_user_attr", fail)
    trials.take(SMALL, make_sampler("random", 2), 0)
    assert all(tried.acquire(timeout=30) for _ in range(3))
    trials.close()
