"""Triton kernels. Installed as ``sslfast.kernels``; one module per op, imported by ``sslfast._load`` alone.

``ahead()`` of a module lists its kernels for compilation without a device: every kernel in each of fp32, fp64 and bf16
that it takes, with every branch of its constants in one of them. fp16 is converted where bf16 is, and is there once.
"""
