"""Training a backbone without labels (and, as the baseline, with them)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslfast.pretrain.loop import pretrain
    from sslfast.pretrain.methods import load_method

__all__ = ["load_method", "pretrain"]


def __getattr__(name: str) -> Any:
    # The config is imported without torch's part of the package: by the command line's help.
    if name == "pretrain":
        from sslfast.pretrain.loop import pretrain

        return pretrain
    if name == "load_method":
        from sslfast.pretrain.methods import load_method

        return load_method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
