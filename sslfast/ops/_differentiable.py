"""Give a compiled operator its derivative everywhere: eager autograd, ``torch.compile`` and ``torch.func``."""

from collections.abc import Callable
from typing import Any

import torch

_transforms_are_active: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
"""What ``torch.autograd.Function.apply`` asks itself; a PyTorch without it gets the form that is always right."""


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
    operator = getattr(torch.ops.sslfast, name).default

    def forward(*inputs: Any) -> Any:
        return operator(*inputs)

    rules = {"forward": forward, "setup_context": save, "backward": backward, "vmap": vmap}
    apply = quick(type(name, (torch.autograd.Function,), {key: staticmethod(rule) for key, rule in rules.items()}))

    def call(*inputs: Any) -> Any:
        return operator(*inputs) if torch.compiler.is_compiling() else apply(*inputs)

    return call


def quick(function: Any) -> Callable[..., Any]:
    """Return what does as ``function.apply`` does, at half the cost per call where nothing needs all of it.

    PyTorch looks up the signature of a forward with a ``setup_context`` anew in every call, which takes longer than a
    small loss. It does not for the older form, whose forward gets ``ctx`` and which knows no ``torch.func`` transforms.
    Where no gradient is wanted, forward alone does. In the compiler and under a transform, ``function`` is applied.

    Args:
        function: a ``torch.autograd.Function`` with ``setup_context``; its rules may be called by themselves.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    rules = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    older: Any = type(function.__name__, (torch.autograd.Function,), rules)

    def apply(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or _transforms_are_active():
            return function.apply(*inputs)
        return older.apply(*inputs) if torch.is_grad_enabled() else function.forward(*inputs)

    return apply
