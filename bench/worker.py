"""A process that measures one thing: ``python -m sslfast.bench.worker JOB ANSWER``, both JSON, the second a file."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from sslfast.bench.contenders import reason
from sslfast.bench.limits import limits
from sslfast.bench.memory import limit_memory, peak
from sslfast.bench.registry import CASES
from sslfast.bench.timing import DTYPES, measure
from sslfast.testing import OpCase


def work(job: dict[str, Any]) -> Any:
    """Do one job: ``limits``, ``time`` or ``memory``."""
    if job["threads"] > 0:
        torch.set_num_threads(job["threads"])
    if job["do"] == "limits":
        return limits(job["device"], DTYPES[job["dtype"]])
    where = CASES[job["op"]], tuple(job["size"]), job["device"], job["dtype"]
    if job["do"] == "memory":
        return {name: _peak(*where, name) for name in job["contenders"]}
    return measure(*where, job["samples"], job["seconds"], job["compiled"])


def _peak(case: OpCase, size: tuple[int, ...], device: str, dtype: str, name: str) -> dict[str, Any]:
    try:
        return dict(peak(case, size, device, dtype, name))
    except Exception as error:  # a baseline that does not run is reported, not hidden
        return {"memory_skipped": reason(f"{type(error).__name__}: {error}")}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if asked["device"] == "cpu":
        limit_memory()
    Path(sys.argv[2]).write_text(json.dumps(work(asked)))
