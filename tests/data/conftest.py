"""Fixtures that the tests of data share."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import Server

from sslfast.data import download

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no other folder of data, no proxy; gives the cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SSLFAST_DATA", raising=False)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr("sslfast.data.places.SYSTEM_FOLDERS", (tmp_path / "system",))
    # The temporary folder that stands in for a cache is shared by all tests of this user.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "xdg" / "sslfast" / "data"


Draw = Callable[..., np.ndarray]


@pytest.fixture
def draw() -> Draw:
    """Draws images (height, width, 3), or (height, width) where channels is 0; the same ones in every run."""
    random = np.random.default_rng(0)

    def one(height: int = 12, width: int = 16, channels: int = 3) -> np.ndarray:
        shape = (height, width, channels) if channels else (height, width)
        return random.integers(0, 256, shape, dtype=np.uint8)

    return one


@pytest.fixture
def tree(tmp_path: Path, draw: Draw) -> Path:
    """A folder with train/ and val/, two classes, three images of each."""
    top = tmp_path / "tree"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (top / split / label).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(draw()).save(top / split / label / f"{i}.png")
    return top


@pytest.fixture
def as_somebody(tmp_path: Path) -> Callable[[Callable[[], None]], None]:
    """Runs a function in a child without root's rights: root may read and write everything."""
    if os.getuid() == 0:
        for folder in [tmp_path, *tmp_path.parents][:3]:
            os.chmod(folder, 0o755)  # pytest's own are for root alone

    def run(check: Callable[[], None]) -> None:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                check()
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    return run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, own_places: Path) -> Iterator[Server]:
    monkeypatch.setattr(download, "RETRY_AFTER", (0.01, 0.01))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
