"""What somebody needs to get the same numbers again: the command, the configuration, the versions."""

import platform
import shlex
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sslfast.report.contents import Contents

PACKAGES = ("sslfast", "torch", "numpy", "optuna", "scikit-learn", "onnx", "onnxruntime")
NO_OPTION = ("command", "versions", "machine", "fingerprint")
"""Entries of config.json that describe the run instead of being options of its command."""


def command_of(contents: Contents) -> str:
    """Write the command line that started the run, or nothing where config.json does not name its command."""
    config = contents.config
    command = config.get("command")
    if not isinstance(command, str):
        return ""
    words = ["sslfast", command]
    options = {key: value for key, value in config.items() if key not in NO_OPTION}
    if command == "pretrain" and isinstance(options.get("method"), str):
        words.append(str(options.pop("method")))  # the one option that has no name on the command line
    for key, value in _flat(options):
        flag = "--" + key.replace("_", "-")
        if value is None or value == []:
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [flag, *(str(part) for part in value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """List the configuration with the names of nested entries joined by dots."""
    return dict(_flat({key: value for key, value in config.items() if key != "versions"}))


def versions_of(contents: Contents) -> tuple[str, dict[str, str]]:
    """Give a title and the versions: those that the run recorded, else those of the machine that writes the page."""
    for holder in (contents.table or {}, contents.config, contents.pretrain_result):
        recorded = holder.get("versions")
        if isinstance(recorded, dict) and recorded:
            return "Versions", {str(name): str(value) for name, value in recorded.items()}
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return "Versions where this page was written", found


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
