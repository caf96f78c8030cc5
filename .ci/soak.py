"""Run the tests marked ``soak`` and write what they counted to one JSON file.

A test states its counts with pytest's ``record_property("kills", 50)``; they stand under its name.
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as tree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main(out: Path) -> int:
    """Run pytest, translate its report, and return its exit code."""
    from sslfast.bench.machine import machine

    report = ROOT / "build" / "soak.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "soak",
        "tests",
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit1",
    ]
    code = subprocess.call(command, cwd=ROOT)
    if not report.exists():
        print("soak: pytest wrote no report", file=sys.stderr)
        return code or 1
    tests = [_entry(case) for case in tree.parse(report).iter("testcase")]
    outcomes = [test["outcome"] for test in tests]
    summary = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "soak.json"
    path.write_text(json.dumps({"machine": machine(), "summary": summary, "tests": tests}, indent=2) + "\n")
    print(f"written: {path}")
    return code


def _entry(case: tree.Element) -> dict[str, Any]:
    failed = case.find("failure") if case.find("failure") is not None else case.find("error")
    skipped = case.find("skipped")
    entry: dict[str, Any] = {
        "name": f"{case.get('classname')}.{case.get('name')}",
        "outcome": "failed" if failed is not None else "skipped" if skipped is not None else "passed",
        "seconds": round(float(case.get("time") or 0), 2),
        "counts": {item.get("name"): _number(item.get("value") or "") for item in case.iter("property")},
    }
    reason = failed if failed is not None else skipped
    if reason is not None:
        entry["reason"] = (reason.get("message") or "").splitlines()[:1]
    return entry


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    sys.exit(main(Path(os.environ.get("OUT") or ROOT / "bench" / "results")))
