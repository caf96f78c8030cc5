"""Launches every CUDA and Triton kernel on odd shapes; compute-sanitizer watches. Run by ``make gpu``."""

import torch

import sslfast
from sslfast.ops.unit_rows import unit_rows


def misaligned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that start one element behind an aligned address."""
    count = int(torch.Size(shape).numel())
    return torch.randn(count + 1, dtype=dtype, device="cuda")[1:].view(shape).requires_grad_()


for dtype in (torch.float32, torch.float64):
    for rows in (0, 1, 31, 33, 257):
        x = misaligned(rows, 37, dtype=dtype)
        torch.autograd.grad(unit_rows(x).sum(), x)
    for rows, depth in ((1, 1), (3, 5), (31, 33), (65, 130)):
        z0, z1 = misaligned(rows, depth, dtype=dtype), misaligned(depth, rows, dtype=dtype)
        torch.autograd.grad(sslfast.nt_xent(z0, z1.T, 0.1), [z0, z1])
        torch.autograd.grad(sslfast.nt_xent(z0, z1.T, 0.01), [z0, z1])
        negatives = misaligned(depth, 41, dtype=dtype)
        torch.autograd.grad(sslfast.nt_xent(z0, z1.T, negatives=negatives), [z0, z1, negatives])
        index = torch.arange(rows, device="cuda").repeat(2)
        torch.autograd.grad(sslfast.nt_xent_indexed(torch.cat([z0, z1.T]), index), [z0, z1])
        half0, half1 = (z.detach().to(torch.bfloat16).requires_grad_() for z in (z0, z1.T))
        torch.autograd.grad(sslfast.nt_xent(half0, half1, 0.1), [half0, half1])
    for rows, classes, views in ((1, 1, 2), (33, 37, 3), (65, 130, 8)):
        x = [misaligned(rows, classes, dtype=dtype) for _ in range(views)]
        torch.autograd.grad(sslfast.self_classifier(x), x)
        halves = [one.detach().to(torch.bfloat16).requires_grad_() for one in x]
        torch.autograd.grad(sslfast.self_classifier(halves), halves)
    for rows, columns in ((1, 1), (5, 33), (131, 600)):
        views = [misaligned(rows, columns, dtype=dtype) for _ in range(3)]
        queue = [misaligned(rows + 2, columns, dtype=dtype) for _ in range(2)]
        for iterations in (0, 3):
            sslfast.sinkhorn(views[0], iterations)
            sslfast.sinkhorn(views[0], iterations, valid_rows=rows // 2)
            torch.autograd.grad(sslfast.swav_loss(views[:2], views[2:], queue, iterations=iterations), views)
            torch.autograd.grad(sslfast.swav_loss(views[:2], [], iterations=iterations), views[:2])
    for rows, depth in ((3, 1), (5, 3), (3, 5), (65, 130), (130, 65)):
        z0, z1 = misaligned(rows, depth, dtype=dtype), misaligned(depth, rows, dtype=dtype)
        torch.autograd.grad(sslfast.barlow_twins(z0, z1.T), [z0, z1])
        half0, half1 = (z.detach().to(torch.bfloat16).requires_grad_() for z in (z0, z1.T))
        torch.autograd.grad(sslfast.barlow_twins(half0, half1), [half0, half1])
torch.cuda.synchronize()
