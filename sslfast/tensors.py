"""Reading safetensors files, whatever their path is made of."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sslfast.errors import SslfastError, first_line


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a file, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        SslfastError: it cannot be read, or is no safetensors file.
    """
    try:
        # By descriptor: safetensors and torch take no path that is not UTF-8.
        with path.open("rb") as stream, safe_open(f"/proc/self/fd/{stream.fileno()}", framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, handle.metadata() or {}
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SslfastError(f"cannot read {path}: {error.strerror or first_line(error)}") from error
    except Exception as error:  # safetensors raises its own kinds
        raise SslfastError(
            f"{path} is not a readable safetensors file ({first_line(error)}); give one that sslfast wrote"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata alone; empty where there is none, or no such file."""
    try:
        with path.open("rb") as stream, safe_open(f"/proc/self/fd/{stream.fileno()}", framework="pt") as handle:
            return handle.metadata() or {}
    except Exception:  # what is wrong with the file is told by who reads its tensors
        return {}
