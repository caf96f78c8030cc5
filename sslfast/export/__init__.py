"""From a classifier to one ONNX file, and from that file to predictions.

`sslfast.export.onnx` needs torch; `sslfast.export.predict` must not, so neither is imported before it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslfast.export.onnx import Parity, to_onnx
    from sslfast.export.predict import Predictor

__all__ = ["Parity", "Predictor", "to_onnx"]


def __getattr__(name: str) -> Any:
    """Import `to_onnx`, `Parity` or `Predictor` on first use."""
    if name in ("to_onnx", "Parity"):
        from sslfast.export import onnx

        return getattr(onnx, name)
    if name == "Predictor":
        from sslfast.export.predict import Predictor

        return Predictor
    raise AttributeError(f"module 'sslfast.export' has no attribute {name!r}")
