"""A bank of classifier heads in plain PyTorch: a state's layout, dropout's noise, a training step, evaluation."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

PANEL = 64
"""Columns of a weight that stand together."""
COLUMNS = 16
"""Every width is rounded up to a multiple of this; what is added is zero and stays zero."""
OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
"""In the order of the table of heads."""
FIRST_WIDTH = 5
"""Columns of the table of heads before the widths: optimizer, steps done, activations dropped, key, layers."""

NOISE_STEP = 0x9E3779B97F4A7C15
"""What a step adds to the key of dropout's noise, modulo 2^64."""


def rounded_up(count: int) -> int:
    """Round a width up."""
    return -(-count // COLUMNS) * COLUMNS


def widths_of(inputs: int, head: Sequence[int]) -> list[int]:
    """Give a head's widths, from the features to the classes."""
    return [inputs, *(int(width) for width in head[FIRST_WIDTH : FIRST_WIDTH + int(head[4])])]


def parameter_count(widths: Sequence[int]) -> int:
    """Count weights and biases of rounded-up widths."""
    padded = [rounded_up(width) for width in widths]
    return sum((a + 1) * b for a, b in zip(padded, padded[1:], strict=False))


def state_size(widths: Sequence[int], optimizer: str) -> int:
    """Count the numbers of a head's state: its parameters and one moment of each, or two."""
    return parameter_count(widths) * (3 if optimizer in ("adam", "adamw") else 2)


def pack(tensors: Sequence[Tensor], state: Tensor) -> None:
    """Write weights (out, in) and biases (out) of each layer into a block of a state, in panels."""
    at = 0
    for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
        outputs, inputs = (rounded_up(width) for width in weight.shape)
        padded = functional.pad(weight, (0, inputs - weight.shape[1], 0, outputs - weight.shape[0]))
        for panel in torch.split(padded, PANEL):
            state[at : at + panel.numel()].view(inputs, len(panel)).copy_(panel.t())
            at += panel.numel()
        state[at : at + outputs].copy_(functional.pad(bias, (0, outputs - len(bias))))
        at += outputs


def unpack(state: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Give weight (out, in) and bias (out) of each layer from a block of a state."""
    tensors = []
    at = 0
    for width, next_width in zip(widths, widths[1:], strict=False):
        inputs, outputs = rounded_up(width), rounded_up(next_width)
        panels = []
        for first in range(0, outputs, PANEL):
            columns = min(PANEL, outputs - first)
            panels.append(state[at : at + inputs * columns].view(inputs, columns).t())
            at += inputs * columns
        tensors.append(torch.cat(panels)[:next_width, :width].contiguous())
        tensors.append(state[at : at + next_width].clone())
        at += outputs
    return tensors


def noise(key: int, step: int, layer: int, rows: int, units: int, device: torch.device | str = "cpu") -> Tensor:
    """Give 16 random bits (rows, units) for a layer's dropout: a hash of its arguments and the place, nothing else."""
    mask = (1 << 64) - 1
    state = (key + step * NOISE_STEP + layer * 0xD1B54A32D192ED03) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    state ^= state >> 31
    first, second = state & 0xFFFFFFFF, state >> 32
    pairs, padded = (rows + 1) // 2, rounded_up(units)
    bits = torch.arange(pairs * padded, device=device).view(pairs, padded)[:, :units] ^ first
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 15) ^ second) * 0x846CA68B) & 0xFFFFFFFF
    bits = bits ^ (bits >> 16)
    return torch.stack([bits & 0xFFFF, bits >> 16], 1).flatten(0, 1)[:rows]


def gradients(
    weights: Sequence[Tensor], features: Tensor, labels: Tensor, dropped: int, key: int, step: int, half: bool
) -> tuple[list[Tensor], Tensor]:
    """Give the gradient of the mean cross-entropy by every weight and bias, and that mean.

    A hidden layer is h' = m relu(W h + b), where m is 0 for ``dropped`` of 65536 activations and makes up for them in
    the others. ``half``: what enters a product is rounded to bfloat16.
    """

    def cells(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().to(tensor.dtype) if half else tensor

    inputs = [cells(features)]
    depth = len(weights) // 2
    factor = 65536 / (65536 - dropped)
    for layer in range(depth - 1):
        output = (inputs[-1] @ cells(weights[2 * layer]).t() + weights[2 * layer + 1]).relu()
        if dropped:
            kept = noise(key, step, layer, len(output), output.shape[1], output.device) >= dropped
            output = output * (kept.to(output.dtype) * factor)
        inputs.append(cells(output))
    logits = inputs[-1] @ cells(weights[-2]).t() + weights[-1]
    loss = functional.cross_entropy(logits, labels)
    error = (logits.softmax(1) - functional.one_hot(labels, logits.shape[1])) / len(labels)
    result: list[Tensor] = []
    for layer in range(depth - 1, -1, -1):
        result[:0] = [cells(error).t() @ inputs[layer], error.sum(0)]
        if layer:
            error = (cells(error) @ cells(weights[2 * layer])) * factor * (inputs[layer] > 0)
    return result, loss


def update(
    optimizer: str,
    numbers: Sequence[float],
    rate: float,
    step: int,
    weights: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> None:
    """Move weights along their gradients, in place: Nesterov's SGD, Adam, AdamW as torch.optim has them, or LARS.

    LARS multiplies gradient and decay of a weight by trust |w| / (|g| + decay |w| + epsilon) and leaves biases without
    decay (You, Gitman and Ginsburg, 2017).
    """
    momentum, second_decay, epsilon, decay, trust = numbers
    for index, (weight, gradient) in enumerate(zip(weights, grads, strict=True)):
        own = 0.0 if optimizer == "lars" and index % 2 else decay
        if optimizer in ("adam", "adamw"):
            if optimizer == "adamw":
                weight.mul_(1 - rate * own)
            else:
                gradient = gradient + own * weight
            first[index].mul_(momentum).add_(gradient, alpha=1 - momentum)
            second[index].mul_(second_decay).addcmul_(gradient, gradient, value=1 - second_decay)
            deviation = second[index].sqrt() / math.sqrt(1 - second_decay ** (step + 1)) + epsilon
            weight.addcdiv_(first[index], deviation, value=-rate / (1 - momentum ** (step + 1)))
            continue
        scale: Tensor | float = 1.0
        if optimizer == "lars" and not index % 2:
            size, slope = weight.norm(), gradient.norm()
            scale = torch.where(
                (size > 0) & (slope > 0), trust * size / (slope + own * size + epsilon), torch.ones_like(size)
            )
        gradient = (gradient + own * weight) * scale
        first[index].mul_(momentum).add_(gradient)
        weight.sub_(gradient + momentum * first[index], alpha=rate)


def head_bank_train(
    features: Tensor,
    labels: Tensor,
    order: Tensor,
    heads: Tensor,
    numbers: Tensor,
    rates: Tensor,
    states: list[Tensor],
    batch: int,
    half: bool,
) -> Tensor:
    """Train every head on the rows of ``order``, one after another; returns the loss of each head and step."""
    losses = torch.empty_like(rates)
    for index, (head, state) in enumerate(zip(heads.tolist(), states, strict=True)):
        widths = widths_of(features.shape[1], head)
        optimizer = OPTIMIZERS[head[0]]
        size = parameter_count(widths)
        blocks = [unpack(block, widths) for block in torch.split(state, size)]
        weights, first, second = blocks[0], blocks[1], blocks[-1]
        for step, rows in enumerate(torch.split(order, batch)):
            done = head[1] + step
            grads, loss = gradients(
                weights, features[rows], labels[rows % len(labels)], head[2], head[3] & ((1 << 64) - 1), done, half
            )
            losses[index, step] = loss
            update(optimizer, numbers[index].tolist(), float(rates[index, step]), done, weights, first, second, grads)
        for tensors, block in zip(blocks, torch.split(state, size), strict=True):
            pack(tensors, block)
    return losses


def head_bank_evaluate(features: Tensor, labels: Tensor, heads: Tensor, states: list[Tensor], half: bool) -> Tensor:
    """Give of each head how many rows are right (NaN where a logit is not finite) and the sum of cross-entropies."""
    result = []
    for head, state in zip(heads.tolist(), states, strict=True):
        widths = widths_of(features.shape[1], head)
        weights = unpack(state[: parameter_count(widths)], widths)
        rows = features
        for layer in range(0, len(weights), 2):
            weight = weights[layer]
            if half:
                rows, weight = rows.bfloat16().to(rows.dtype), weight.bfloat16().to(weight.dtype)
            rows = rows @ weight.t() + weights[layer + 1]
            if layer < len(weights) - 2:
                rows = rows.relu()
        right = (rows.argmax(1) == labels[torch.arange(len(rows), device=rows.device) % len(labels)]).sum().double()
        loss = functional.cross_entropy(rows.double(), labels.repeat(len(rows) // len(labels)), reduction="sum")
        right = torch.where(rows.isfinite().all(), right, torch.full_like(right, math.nan))
        result.append(torch.stack([right, loss]))
    return torch.stack(result)
