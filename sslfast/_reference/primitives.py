"""The names of a mixed edge's operations, in the order of the published DARTS and PC-DARTS code."""

PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""A row of alpha holds one number for each of these; the raw operators know them by their place."""
