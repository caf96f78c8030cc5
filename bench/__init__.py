"""Benchmarks, installed as ``sslfast.bench``: the registry of cases, which the tests share, and the runner."""
