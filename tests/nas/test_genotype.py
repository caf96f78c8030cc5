import pytest

from sslfast.errors import UsageError
from sslfast.nas.genotype import PUBLISHED, Genotype, check, depth, parse, skips

TEXT = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), "
    "('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=range(2, 6), "
    "reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2), "
    "('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], reduce_concat=range(2, 6))"
)
"""As PC-DARTS's own log prints the cell that it searched on CIFAR-10."""
CELL = "[('skip_connect', 0), ('sep_conv_3x3', 1)]"


def of(normal=CELL, concat="[2]", tail=""):
    return f"Genotype(normal={normal}, normal_concat={concat}, reduce={CELL}, reduce_concat=[2]{tail})"


def test_the_published_text_is_read_and_written():
    assert parse(TEXT) == PUBLISHED["PC_DARTS_cifar"]
    assert str(PUBLISHED["PC_DARTS_cifar"]) == TEXT


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_genotypes_are_their_own_text(name):
    genotype = parse(name)
    check(genotype)
    assert parse(f"  {genotype}\n") == genotype
    assert parse(str(genotype).replace("range(2, 6)", "[2, 3, 4, 5]")).normal_concat == [2, 3, 4, 5]


def test_positional_fields_are_read():
    assert parse(f"Genotype({CELL}, [2], {CELL}, [2])") == parse(of())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no genotype: ''"),
        ("DARTS_V3", "no genotype: 'DARTS_V3'"),
        ("__import__('os').system('false')", "no genotype"),
        (of(concat="[2][0:1]"), "no genotype"),
        (of(concat="(lambda: [2])()"), "no genotype"),
        (of(concat="range(2, 10 ** 9)"), "no genotype"),
        (of(concat="range(1000000000)"), "no genotype"),
        (of(concat="range('2')"), "no genotype"),
        (of(concat="[True]"), "no genotype"),
        (of(normal="7"), "no genotype: normal=7"),
        (of(normal="[('skip_connect', '0'), ('skip_connect', 1)]"), "no genotype: the gene"),
        (of(tail=", more=1"), "no genotype"),
        (of().replace("reduce_concat", "normal_concat"), "no genotype"),
        ("(" * 5000, "no genotype"),
        ("Genotype(" + "[" * 3000 + "]" * 3000 + ", [2], [], [2])", "no genotype"),
        ("x" * 30_000, "30000 characters"),
        (of(normal="[('skip_connect', 0), ('capsule', 1)]"), "gene 1 of the normal cell names an unknown operation"),
        (of(normal="[('skip_connect', 0), ('skip_connect', 2)]"), "is a forward edge: state 2 would take state 2"),
        (of(normal="[('skip_connect', 0), ('skip_connect', -1)]"), "is a forward edge"),
        (of(normal="[('skip_connect', 0)]"), "needs two genes a node"),
        (of(normal="[]"), "needs two genes a node"),
        (of(concat="[]"), "must join different states"),
        (of(concat="[2, 2]"), "must join different states"),
        (of(concat="[3]"), "must join different states from 0 to 2"),
    ],
)
def test_what_is_no_genotype_is_refused(text, said):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_registered_operations_can_be_named():
    text = of(normal="[('skip_connect', 0), ('capsule', 1)]")
    assert parse(text, ("skip_connect", "sep_conv_3x3", "capsule")).normal[1] == ("capsule", 1)


def test_skips_and_depth_are_counted():
    assert [skips(PUBLISHED[name].normal) for name in ("DARTS_V1", "PC_DARTS_cifar", "PDARTS")] == [3, 1, 2]
    assert depth(PUBLISHED["DARTS_V1"].normal) == 1
    # P-DARTS: node 2 (dil), node 3 (sep of 1), node 4 (sep of node 3), node 5 (dil of node 4).
    assert depth(PUBLISHED["PDARTS"].normal) == 3
    chain = [("sep_conv_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 2), ("none", 0)]
    assert (skips(chain), depth(chain)) == (1, 2)


def test_a_genotype_compares_as_the_published_tuple():
    assert Genotype([("none", 0)] * 2, [2], [("none", 0)] * 2, [2])[1] == [2]
