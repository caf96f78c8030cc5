"""Give a compiled operator its derivative everywhere: eager autograd, ``torch.compile`` and ``torch.func``."""

from collections.abc import Callable
from typing import Any

import torch


def differentiable(
    name: str, *, save: Callable[..., None], backward: Callable[..., Any], vmap: Callable[..., Any]
) -> Callable[..., Any]:
    """Register derivative and vmap rule of ``sslfast::name``; return the function that the package itself calls.

    ``torch.library.register_autograd`` serves callers of the raw operator and ``torch.compile``, but refuses
    ``torch.func`` transforms; a ``torch.autograd.Function`` serves those (and costs less per call), but hides the
    operator's second derivative from the compiler. Both are made of the same two functions.

    Args:
        name: the operator's name, without the namespace.
        save: ``(ctx, inputs, output)``, stores what ``backward`` needs.
        backward: ``(ctx, *grads)``, returns one gradient or None per input; calls differentiable functions only.
        vmap: ``(info, in_dims, *inputs)``, returns the outputs and their mapped dimensions; likewise.
    """
    torch.library.register_autograd(f"sslfast::{name}", backward, setup_context=save)
    torch.library.register_vmap(f"sslfast::{name}", vmap)
    operator = getattr(torch.ops.sslfast, name)

    def forward(*inputs: Any) -> Any:
        return operator(*inputs)

    rules = {"forward": forward, "setup_context": save, "backward": backward, "vmap": vmap}
    function = type(name, (torch.autograd.Function,), {key: staticmethod(rule) for key, rule in rules.items()})

    def call(*inputs: Any) -> Any:
        return operator(*inputs) if torch.compiler.is_compiling() else function.apply(*inputs)  # type: ignore[attr-defined]

    return call
