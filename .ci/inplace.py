"""Build the native libraries beside a tree of links to the package, without installing; and test them under sanitizers.

``python .ci/inplace.py FOLDER [-DNAME=VALUE ...]`` builds; ``--sanitize`` also runs the operators' tests under
AddressSanitizer and UndefinedBehaviorSanitizer. Needs torch, CMake and a C++ compiler; no network.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def link_package(folder: Path) -> Path:
    """Make ``folder/sslfast`` a package of links to the sources; return it."""
    package = folder / "sslfast"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in (ROOT / "sslfast").iterdir() if path.suffix != ".so"}
    wanted |= {"kernels": ROOT / "kernels", "bench": ROOT / "bench"}
    wanted.pop("__pycache__", None)
    for link in package.iterdir():
        if link.is_symlink():
            link.unlink()
    for name, path in wanted.items():
        (package / name).symlink_to(path)
    return package


def build(folder: Path, *definitions: str) -> None:
    """Build the libraries into ``folder/sslfast`` with CMake."""
    if shutil.which("cmake") is None:
        sys.exit("no cmake on this machine: the native libraries cannot be built")
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(f"{sys.executable} has no torch: sslfast needs torch >= 2.11")
    package = link_package(folder)
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(folder / "cmake")),
        *(["-GNinja"] if shutil.which("ninja") else []),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}",
        f"-DSSLFAST_TORCH_ROOT={Path(spec.origin).parent}",
        f"-DSSLFAST_PYTHON={sys.executable}",
        *definitions,
    ]
    for command in (configure, ["cmake", "--build", str(folder / "cmake"), "--parallel"]):
        if subprocess.call(command) != 0:
            sys.exit(f"this command failed: {' '.join(command)}")


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which ``import sslfast`` finds the tree in ``folder``."""
    return {**os.environ, "PYTHONPATH": str(folder)}


def sanitize(folder: Path) -> int:
    """Run the operators' tests with every report an error; return pytest's exit code, or 1 where a report was left."""
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    libraries = [_runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    variables = {
        **environment(folder),
        # Python does not link the sanitizer's runtime; the C++ library must be there when it starts.
        "LD_PRELOAD": " ".join(libraries),
        # Python's own start-up leaks on purpose.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/asan",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}/ubsan",
    }
    # Not the interpreted kernels: no C++ of ours runs there.
    tests = [str(path) for path in sorted((ROOT / "tests" / "ops").glob("test_*.py")) if "triton" not in path.stem]
    tests.append(str(ROOT / "tests" / "features" / "test_engine.py"))
    tests.append(str(ROOT / "tests" / "views" / "test_renderers.py"))
    # -P: the checkout's own package must not come before the one that was built here.
    code = subprocess.call(
        [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not gpu",
            "-k",
            "not ranks and not dali",
            *tests,
        ],
        cwd=ROOT,
        env=variables,
    )
    where = "import sslfast; print(sslfast.__file__)"
    used = subprocess.run([sys.executable, "-P", "-c", where], cwd=ROOT, env=variables, capture_output=True, text=True)
    if not used.stdout.startswith(str(folder)):
        print(f"the tests did not use the package in {folder}: {used.stdout}{used.stderr}", file=sys.stderr)
        return 1
    found = [path for path in sorted(reports.iterdir()) if path.stat().st_size]
    for path in found:
        print(path.read_text(), file=sys.stderr)
    print(f"sanitizers: {len(found)} reports, pytest ended with {code}")
    return 1 if found else code


def _runtime(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not os.path.isabs(path):
        sys.exit(f"{compiler} has no {name}")
    return str(Path(path).resolve())


if __name__ == "__main__":
    words = sys.argv[1:]
    target = Path(words[0]).resolve()
    build(target, *(word for word in words[1:] if word.startswith("-D")))
    if "--sanitize" in words:
        sys.exit(sanitize(target))
