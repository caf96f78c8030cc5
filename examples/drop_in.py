"""Swap a SimCLR loss for the compiled one: the two lines that change in a training script.

Run it with ``python examples/drop_in.py``; no data set and no GPU are needed.
"""

import torch
from torch import nn

from sslfast.losses import NTXentLoss  # was: from lightly.loss import NTXentLoss

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
criterion = NTXentLoss(temperature=0.2)
images = torch.randn(256, 32)

for step in range(50):
    views = [images + 0.3 * torch.randn_like(images) for _ in range(2)]
    loss = criterion(*(network(view) for view in views))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 9:
        print(f"step {step + 1}: loss {loss.item():.3f}")
