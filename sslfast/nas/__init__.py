"""Differentiable architecture search: DARTS, PC-DARTS, P-DARTS, and both together with a self-supervised loss."""

from sslfast.nas.primitives import PRIMITIVES

__all__ = ["PRIMITIVES"]
