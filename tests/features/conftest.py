"""Fixtures of the feature store's tests."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sslfast.features import extract


def _load_cases():
    spec = importlib.util.spec_from_file_location("feature_cases", Path(__file__).with_name("cases.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cases():
    """make_dataset, make_backbone and reference_features of cases.py."""
    return _load_cases()


@pytest.fixture(scope="session")
def children():
    """A function that runs child processes at the same time: commands -> list of [exit status, error]."""
    script = Path(__file__).with_name("cases.py")
    server = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def run(*commands):
        server.stdin.write(json.dumps(commands) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.stdout.close()
    server.wait()


@pytest.fixture(scope="module")
def store_folder(cases, tmp_path_factory):
    """A store of three shards with two blocks each and two views; tests put back what they change."""
    folder = tmp_path_factory.mktemp("store") / "features"
    dataset = cases.make_dataset(700)
    extract(cases.make_backbone(520), dataset, folder, ("identity", "flip"), shard_rows=300)
    return folder


@pytest.fixture
def files_of():
    """A function that gives the content of every file that is data, by name."""

    def read(folder):
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.name != ".lock"}

    return read
