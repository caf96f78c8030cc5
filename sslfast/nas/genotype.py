"""A cell's architecture as operations and their inputs, read from text without running any of it."""

import ast
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sslfast._reference.primitives import PRIMITIVES
from sslfast.errors import UsageError

Gene = tuple[str, int]
"""An operation and the state that it takes: 0 and 1 are the cell's inputs, 2 the first node."""

LONGEST = 20_000
"""Characters of a genotype's text, at most."""


class Genotype(NamedTuple):
    """A normal and a reduction cell. Its text is the published one, and `parse` reads it back.

    Attributes:
        normal: two genes a node, the first node's first.
        normal_concat: the states whose channels the cell's output joins.
        reduce: of the reduction cell, likewise.
        reduce_concat: likewise.
    """

    normal: Sequence[Gene]
    normal_concat: Sequence[int]
    reduce: Sequence[Gene]
    reduce_concat: Sequence[int]


_SHORT = {
    "none": "none",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}


def _genes(words: str) -> list[Gene]:
    return [(_SHORT[name], int(state)) for name, state in (word.split(",") for word in words.split())]


def _published(normal: str, reduce: str) -> Genotype:
    return Genotype(_genes(normal), range(2, 6), _genes(reduce), range(2, 6))


PUBLISHED: dict[str, Genotype] = {
    # Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", 2019: first and second order.
    "DARTS_V1": _published(
        "sep3,1 sep3,0 skip,0 sep3,1 skip,0 sep3,1 sep3,0 skip,2",
        "max,0 max,1 skip,2 max,0 max,0 skip,2 skip,2 avg,0",
    ),
    "DARTS_V2": _published(
        "sep3,0 sep3,1 sep3,0 sep3,1 sep3,1 skip,0 skip,0 dil3,2",
        "max,0 max,1 skip,2 max,1 max,0 skip,2 skip,2 max,1",
    ),
    # Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", 2020.
    "PC_DARTS_cifar": _published(
        "sep3,1 skip,0 sep3,0 dil3,1 sep5,0 sep3,1 avg,0 dil3,1",
        "sep5,1 max,0 sep5,1 sep5,2 sep3,0 sep3,3 sep3,1 sep3,2",
    ),
    "PC_DARTS_image": _published(
        "skip,1 sep3,0 sep3,0 skip,1 sep3,1 sep3,3 sep3,1 dil5,4",
        "sep3,0 skip,1 dil5,2 max,1 sep3,2 sep3,1 sep5,0 sep3,3",
    ),
    # Chen et al., "Progressive Differentiable Architecture Search", 2019.
    "PDARTS": _published(
        "skip,0 dil3,1 skip,0 sep3,1 sep3,1 sep3,3 sep3,0 dil5,4",
        "avg,0 sep5,1 sep3,0 dil5,2 max,0 dil3,1 dil3,1 dil5,3",
    ),
}
"""Cells that papers printed, by the names of their code."""


def parse(text: str, operations: Iterable[str] = PRIMITIVES) -> Genotype:
    """Read a genotype: the name of a published one, or the text ``Genotype(normal=[('skip_connect', 0), ...], ...)``.

    The text is taken apart as a syntax tree; nothing of it is run.

    Args:
        text: as search logs and the published code print it; concatenations are lists or ``range(2, 6)``.
        operations: that it may name.

    Raises:
        UsageError: the text is no genotype, or one that makes no cell (`check`).
    """
    text = text.strip()
    if text in PUBLISHED:
        return PUBLISHED[text]
    genotype = Genotype(**_fields(text))
    check(genotype, operations)
    return genotype


def _fields(text: str) -> dict[str, Any]:
    if len(text) > LONGEST:
        raise _no_genotype(f"{len(text)} characters")
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _no_genotype(repr(text[:60])) from None
    named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"
    if not named or not isinstance(call, ast.Call) or len(call.args) + len(call.keywords) != 4:
        raise _no_genotype(repr(text[:60]))
    found = dict(zip(Genotype._fields, map(_value, call.args), strict=False))
    for keyword in call.keywords:
        if keyword.arg not in Genotype._fields or keyword.arg in found:
            raise _no_genotype(f"the field {keyword.arg!r}")
        found[keyword.arg] = _value(keyword.value)
    for name in ("normal", "reduce"):
        found[name] = _read_genes(name, found[name])
        found[f"{name}_concat"] = _read_states(f"{name}_concat", found[f"{name}_concat"])
    return found


def _value(node: ast.expr) -> object:
    try:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            ends = [ast.literal_eval(one) for one in node.args]
            if all(type(end) is int and abs(end) <= LONGEST for end in ends):
                return range(*ends)
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise _no_genotype(repr(ast.unparse(node)[:60])) from None


def _read_genes(name: str, found: object) -> list[Gene]:
    if not isinstance(found, (list, tuple)):
        raise _no_genotype(f"{name}={found!r}")
    for gene in found:
        if not isinstance(gene, (list, tuple)) or [type(part) for part in gene] != [str, int]:
            raise _no_genotype(f"the gene {gene!r} in {name}")
    return [(gene[0], gene[1]) for gene in found]


def _read_states(name: str, found: object) -> Sequence[int]:
    if isinstance(found, range):
        return found
    if not isinstance(found, (list, tuple)) or any(type(state) is not int for state in found):
        raise _no_genotype(f"{name}={found!r}")
    return list(found)


def _no_genotype(came: str) -> UsageError:
    return UsageError(
        f"no genotype: {came}; give one of {', '.join(PUBLISHED)}, or "
        "Genotype(normal=[('skip_connect', 0), ...], normal_concat=range(2, 6), reduce=..., reduce_concat=range(2, 6))"
    )


def check(genotype: Genotype, operations: Iterable[str] = PRIMITIVES) -> None:
    """Refuse a genotype that makes no cell.

    Args:
        genotype: of any number of nodes, two genes each.
        operations: that it may name.

    Raises:
        UsageError: an unknown operation, a gene that takes a state that is not there yet (a forward edge), a number of
            genes that is odd or none, or a concatenation of states that are none.
    """
    known = tuple(operations)
    for cell, genes, concat in (
        ("normal", genotype.normal, genotype.normal_concat),
        ("reduce", genotype.reduce, genotype.reduce_concat),
    ):
        if not genes or len(genes) % 2:
            raise UsageError(f"the {cell} cell needs two genes a node, and a node; it has {len(genes)} genes")
        for number, (name, state) in enumerate(genes):
            node = 2 + number // 2
            if name not in known:
                raise UsageError(
                    f"gene {number} of the {cell} cell names an unknown operation {name!r}; "
                    f"there are: {', '.join(known)}"
                )
            if not 0 <= state < node:
                raise UsageError(
                    f"gene {number} of the {cell} cell is a forward edge: state {node} would take state {state}; "
                    f"it can take 0 to {node - 1}"
                )
        last = 1 + len(genes) // 2
        if not concat or len(set(concat)) < len(concat) or not all(0 <= state <= last for state in concat):
            raise UsageError(f"the {cell} cell must join different states from 0 to {last}, got {list(concat[:20])!r}")


def drawn(seed: int, steps: int = 4) -> Genotype:
    """Draw cells at random: the row that every search must beat.

    Every node gets two different states, and of each any primitive but "none", all alike.

    Args:
        seed: of the draw.
        steps: nodes of a cell.
    """
    generator = random.Random(f"genotype {seed}")

    def cell() -> list[Gene]:
        return [
            (generator.choice(PRIMITIVES[1:]), state)
            for node in range(steps)
            for state in generator.sample(range(2 + node), 2)
        ]

    return Genotype(cell(), range(2, 2 + steps), cell(), range(2, 2 + steps))


def skips(genes: Sequence[Gene]) -> int:
    """Count a cell's skip connections."""
    return sum(name == "skip_connect" for name, _ in genes)


def depth(genes: Sequence[Gene]) -> int:
    """Count the operations on the longest way from a cell's inputs to a node; skips and nothing count as none."""
    longest = [0, 0]
    for node in range(len(genes) // 2):
        ways = [
            longest[state] + (name not in ("skip_connect", "none")) for name, state in genes[2 * node : 2 * node + 2]
        ]
        longest.append(max(ways))
    return max(longest)
