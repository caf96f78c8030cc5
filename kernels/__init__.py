"""Triton kernels. Installed as ``sslfast.kernels``; one module per op, imported by ``sslfast._load`` alone."""
