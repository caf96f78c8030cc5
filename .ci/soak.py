"""Run the tests marked ``soak`` and write what they counted to one JSON file.

A test states its counts with pytest's ``record_property("kills", 50)``; they stand under its name, with the commit and
machine that it ran on. With TESTS=tests/pretrain, say, only the tests there are run; the file keeps all others.
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as tree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main(out: Path, where: str = "tests") -> int:
    """Run pytest on a folder, translate its report, and return its exit code."""
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
        where,
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit1",
    ]
    code = subprocess.call(command, cwd=ROOT)
    if not report.exists():
        print("soak: pytest wrote no report", file=sys.stderr)
        return code or 1
    path = out / "soak.json"
    held = json.loads(path.read_text()) if where != "tests" and path.exists() else {"machines": {}, "tests": []}
    machines = held["machines"]
    here = machine()
    machines[here["commit"]] = here
    # A test is named by its module: those of the folder that was run are all made anew.
    module = where.strip("/").removesuffix(".py").replace("/", ".")
    tests = [test for test in held["tests"] if not f"{test['name']}.".startswith(f"{module}.")]
    tests += [{**_entry(case), "commit": here["commit"]} for case in tree.parse(report).iter("testcase")]
    tests.sort(key=lambda test: str(test["name"]).rpartition("[")[0])
    used = {test["commit"] for test in tests}
    outcomes = [test["outcome"] for test in tests]
    content = {
        "machines": {commit: found for commit, found in machines.items() if commit in used},
        "summary": {name: outcomes.count(name) for name in ("passed", "failed", "skipped")},
        "tests": tests,
    }
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
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
    sys.exit(main(Path(os.environ.get("OUT") or ROOT / "bench" / "results"), os.environ.get("TESTS") or "tests"))
