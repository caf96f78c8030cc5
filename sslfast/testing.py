"""The four gates that every operator passes before it ships, in one place, so that no operator can skip one.

1. against plain PyTorch in float64, forward and every gradient, in every dtype, with poisoned memory;
2. ``torch.autograd.gradcheck`` in float64; 3. ``torch.library.opcheck``; 4. ``torch.compile(fullgraph=True)``.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PLAIN_FACTOR = 2.0
"""Gate 1 allows this many times the largest error of plain PyTorch in the same dtype, and the case's epsilon."""


class GateFailure(AssertionError):
    """An operator that must not ship; the message names the operator, the gate and what was found."""


@dataclass(frozen=True)
class OpCase:
    """One operator as the gates and the benchmarks see it.

    Args:
        name: the operator's one name, in every folder.
        operators: names of the raw operators of ``torch.ops.sslfast`` behind it.
        function: the public function.
        reference: the same in plain PyTorch, with the same arguments.
        inputs: tensors in float64 for a size; the gates cast them and ask for all their gradients.
        sizes: what the gates run, odd sizes among them.
        options: keyword arguments, one mapping per variant.
        raw: arguments of each raw operator, on a device, for opcheck.
        epsilon: what gate 1 adds per dtype, relative to the largest true number of a result or, where that is larger,
            to ``scale``; its keys are the dtypes.
        scale: for a size and options, how large the terms are that a result is a difference of (their rounding
            errors stay when they cancel).
        frozen: what gradcheck differentiates instead of ``function``, where that holds something constant that depends
            on its inputs: the same value and gradient, without the dependence.
        second_order: whether second derivatives are right, too.
        constants: how many inputs, the last ones, are constants: no gradient is asked of them.
        differentiable: whether there is a gradient at all; without one, only outputs are compared.
        bench_sizes: what the benchmarks run.
        sweep_sizes: what ``sslfast bench --sweep`` runs instead: one number grows.
        peers: other packages' implementations, by package name; each value imports and returns a function.
        operations: floating-point operations that the best known algorithm needs for a size, (forward, backward);
            multiply and add count as two.
        traffic: numbers that have to be read or written at least once, (forward, backward).
    """

    name: str
    operators: tuple[str, ...]
    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: Callable[[tuple[int, ...]], tuple[Tensor, ...]]
    sizes: tuple[tuple[int, ...], ...]
    epsilon: Mapping[torch.dtype, float]
    options: tuple[Mapping[str, Any], ...] = ({},)
    scale: Callable[[tuple[int, ...], Mapping[str, Any]], float] = lambda size, options: 0.0
    raw: Callable[[str], Mapping[str, Sequence[tuple[Any, ...]]]] = lambda device: {}
    frozen: Callable[..., Tensor] | None = None
    second_order: bool = True
    constants: int = 0
    differentiable: bool = True
    bench_sizes: tuple[tuple[int, ...], ...] = ()
    sweep_sizes: tuple[tuple[int, ...], ...] = ()
    peers: Mapping[str, Callable[[], Callable[..., Tensor]]] = field(default_factory=dict)
    operations: Callable[[tuple[int, ...]], tuple[float, float]] | None = None
    traffic: Callable[[tuple[int, ...]], tuple[float, float]] | None = None

    def with_gradients(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return leaves of a graph for all values but the constants."""
        variable = len(values) - self.constants
        return [value.detach().clone().requires_grad_(index < variable) for index, value in enumerate(values)]


def check_op(case: OpCase, device: str = "cpu") -> None:
    """Run the four gates of one operator on one device.

    Raises:
        GateFailure: one of them was not passed.
    """
    gate_reference(case, device)
    gate_gradcheck(case, device)
    gate_opcheck(case, device)
    gate_compile(case, device)


def gate_reference(case: OpCase, device: str = "cpu") -> None:
    """Gate 1: outputs and gradients against the float64 reference, in every dtype, size and variant."""
    for size in case.sizes:
        for options in case.options:
            drawn = case.inputs(size)
            for dtype, epsilon in case.epsilon.items():
                values = [tensor.to(device, dtype) for tensor in drawn]
                where = f"{case.name}: size {size}, options {dict(options)}, {dtype}, {device}"
                truth = _run(case, case.reference, [value.double() for value in values], options, where)
                plain = _run(case, case.reference, values, options, where)
                with poisoned():
                    ours = _run(case, case.function, values, options, where)
                _compare(where, epsilon, case.scale(size, options), ours, plain, truth)


def gate_gradcheck(case: OpCase, device: str = "cpu") -> None:
    """Gate 2: gradients, and second ones where the case has them, against finite differences in float64."""
    if not case.differentiable:
        return
    size = min(case.sizes, key=lambda one: (abs(_volume(one) - 12), one))
    for options in case.options:
        values = case.with_gradients([value.to(device, torch.float64) for value in case.inputs(size)])

        def function(*arguments: Tensor, options: Mapping[str, Any] = options) -> Tensor:
            return (case.frozen or case.function)(*arguments, **options)

        with _named(f"{case.name}: gradcheck, size {size}, options {dict(options)}, {device}"):
            torch.autograd.gradcheck(function, values, rtol=1e-4, atol=1e-6)
            if case.second_order:
                torch.autograd.gradgradcheck(function, values, rtol=1e-4, atol=1e-6)


def gate_opcheck(case: OpCase, device: str = "cpu") -> None:
    """Gate 3: schema, autograd registration, fake and AOT dispatch of each raw operator; it proves no mathematics."""
    samples = case.raw(device)
    missing = set(case.operators) - set(samples)
    if missing:
        raise GateFailure(f"{case.name}: opcheck has no arguments for {', '.join(sorted(missing))}")
    for name in case.operators:
        for arguments in samples[name]:
            with _named(f"{case.name}: opcheck of {name}, {device}"), warnings.catch_warnings():
                # opcheck itself looks at the .grad of clones.
                warnings.filterwarnings("ignore", message=".*grad attribute of a Tensor that is not a leaf.*")
                torch.library.opcheck(getattr(torch.ops.sslfast, name).default, arguments)


def gate_compile(case: OpCase, device: str = "cpu", backend: str = "aot_eager") -> None:
    """Gate 4: ``torch.compile(fullgraph=True)`` gives the same outputs and gradients."""
    size = max(case.sizes[:3], key=_volume)
    for options in case.options[:1]:
        values = [value.to(device, torch.float32) for value in case.inputs(size)]
        where = f"{case.name}: torch.compile(fullgraph=True, backend={backend!r}), {device}"
        with _named(where):
            torch.compiler.reset()
            compiled = torch.compile(case.function, fullgraph=True, backend=backend)
            got = _run(case, compiled, values, options, where)
            want = _run(case, case.function, values, options, where)
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other)


def operators() -> dict[str, str]:
    """Schemas of all operators of ``torch.ops.sslfast`` that take or give a tensor, by name."""
    found = {}
    for full_name in torch._C._dispatch_get_all_op_names():
        if full_name.startswith("sslfast::"):
            name = full_name.removeprefix("sslfast::").split(".")[0]
            schema = str(getattr(torch.ops.sslfast, name).default._schema)
            if "Tensor" in schema:
                found[name] = schema
    return found


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory that PyTorch allocates without a value (``empty``, also from C++) with NaN while the body runs."""
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _run(
    case: OpCase, function: Callable[..., Tensor], values: Sequence[Tensor], options: Mapping[str, Any], where: str
) -> list[Tensor]:
    """Return the output and the gradient of every input that has one, for a fixed cotangent."""
    inputs = case.with_gradients(values) if case.differentiable else [value.detach().clone() for value in values]
    with warnings.catch_warnings():
        # An operator without a derivative only warns in some cases.
        warnings.filterwarnings("error", message=".*autograd kernel was not registered.*")
        output = function(*inputs, **options)
        if not case.differentiable:
            if output.requires_grad:
                raise GateFailure(f"{where}: the output requires a gradient, but the case says that there is none")
            return [output]
        if not output.requires_grad:
            raise GateFailure(f"{where}: the output does not depend on its inputs: no gradient is registered")
        variables = [one for one in inputs if one.requires_grad]
        generator = torch.Generator().manual_seed(output.numel())
        cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float32)
        try:
            gradients = torch.autograd.grad(output, variables, cotangent.to(output), allow_unused=True)
        except (RuntimeError, UserWarning) as error:
            raise GateFailure(f"{where}: no gradient: {error}") from error
    for position, gradient in enumerate(gradients):
        if gradient is None:
            raise GateFailure(f"{where}: input {position} gets no gradient")
        if gradient.dtype != inputs[position].dtype or gradient.shape != inputs[position].shape:
            raise GateFailure(
                f"{where}: the gradient of input {position} is {gradient.dtype} {tuple(gradient.shape)}, "
                f"the input {inputs[position].dtype} {tuple(inputs[position].shape)}"
            )
    return [output.detach(), *gradients]


def _compare(
    where: str, epsilon: float, scale: float, ours: list[Tensor], plain: list[Tensor], truth: list[Tensor]
) -> None:
    for position, (one, other, true) in enumerate(zip(ours, plain, truth, strict=True)):
        what = "the output" if position == 0 else f"the gradient of input {position - 1}"
        if one.shape != true.shape or one.dtype != other.dtype:
            raise GateFailure(f"{where}: {what} is {one.dtype} {tuple(one.shape)}, plain PyTorch gives {other.dtype}")
        unwritten = int(one.isnan().sum()) - int(true.isnan().sum())
        if unwritten > 0:
            raise GateFailure(
                f"{where}: {what} holds {unwritten} NaN: memory that was never written, or a wrong result"
            )
        error = _largest(one.double() - true)
        allowed = PLAIN_FACTOR * _largest(other.double() - true) + epsilon * max(_largest(true), scale)
        if not error <= allowed:
            raise GateFailure(f"{where}: {what} is off by {error:.3g}, allowed is {allowed:.3g}")


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _volume(size: tuple[int, ...]) -> int:
    return int(torch.Size(size).numel())


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Turn whatever a check raises into a GateFailure that names the operator and the gate."""
    try:
        yield
    except GateFailure:
        raise
    except Exception as error:
        raise GateFailure(f"{where}: {error}") from error
