"""One file per operator, each with its ``CASE``: what the gates check and the benchmarks time."""
