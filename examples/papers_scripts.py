"""The losses of four papers' own training scripts, and what each becomes: the same value and gradients.

``before`` is what the script computes, in our words; ``after`` is what replaces it. Run it with
``python examples/papers_scripts.py``; no data set and no GPU are needed.
"""

import torch
from torch import Tensor
from torch.nn import functional

import sslfast

# SimCLR in PyTorch (sthalles/SimCLR, simclr.py): `logits, labels = self.info_nce_loss(features)` and
# `loss = self.criterion(logits, labels)`. The rows of `features` are those of the first views, then of the second ones.


def simclr_before(features: Tensor, temperature: float = 0.07) -> Tensor:
    """Put each row's positive first and its negatives behind it, and demand class 0."""
    rows = len(features)
    similarity = functional.normalize(features, dim=1) @ functional.normalize(features, dim=1).T
    image = torch.arange(rows // 2).repeat(2)
    others = ~torch.eye(rows, dtype=torch.bool)
    same = image[:, None] == image[None, :]
    positives = similarity[same & others].view(rows, -1)
    negatives = similarity[~same].view(rows, -1)
    logits = torch.cat([positives, negatives], dim=1) / temperature
    return functional.cross_entropy(logits, torch.zeros(rows, dtype=torch.long))


def simclr_after(features: Tensor, temperature: float = 0.07) -> Tensor:
    """Replace `info_nce_loss` and the criterion."""
    return sslfast.nt_xent(*features.chunk(2), temperature)


# Barlow Twins (facebookresearch/barlowtwins, main.py, `BarlowTwins.forward`), from the projections on. There the
# normalisation is synchronised and the matrix summed over all processes: pass group=torch.distributed.group.WORLD.


def barlow_twins_before(z1: Tensor, z2: Tensor, lambd: float = 0.0051) -> Tensor:
    """Build the cross-correlation matrix and pull it towards the identity."""
    features = z1.shape[1]
    normalise = torch.nn.BatchNorm1d(features, affine=False, dtype=z1.dtype)
    c = normalise(z1).T @ normalise(z2) / len(z1)
    on_diagonal = ((c.diagonal() - 1) ** 2).sum()
    off_diagonal = (c[~torch.eye(features, dtype=torch.bool)] ** 2).sum()
    return on_diagonal + lambd * off_diagonal


def barlow_twins_after(z1: Tensor, z2: Tensor, lambd: float = 0.0051) -> Tensor:
    """Replace everything behind the projector, `self.bn` included."""
    return sslfast.barlow_twins(z1, z2, lambd)


# SwAV (facebookresearch/swav, main_swav.py, `train`): the loop over `args.crops_for_assign`. `output` holds the scores
# of all crops, the large ones first; `queue` the embeddings of former batches, in front of the batch there: the order
# of the rows does not matter to an assignment. With several processes: group=torch.distributed.group.WORLD.


def swav_before(output: Tensor, queue: Tensor, prototypes: Tensor, bs: int) -> Tensor:
    """Assign the large crops with the queue, predict every assignment from every other crop."""
    crops, loss = output.split(bs), torch.zeros((), dtype=output.dtype)
    for assigned in (0, 1):
        with torch.no_grad():
            scores = torch.cat([queue[assigned] @ prototypes.T, crops[assigned].detach()])
            q = torch.exp(scores / 0.05).T
            q /= q.sum()
            for _ in range(3):
                q /= q.sum(dim=1, keepdim=True) * len(q)
                q /= q.sum(dim=0, keepdim=True) * q.shape[1]
            q = (q * q.shape[1]).T[-bs:]
        terms = [
            -(q * functional.log_softmax(crop / 0.1, dim=1)).sum(dim=1).mean()
            for number, crop in enumerate(crops)
            if number != assigned
        ]
        loss = loss + sum(terms) / len(terms)
    return loss / 2


def swav_after(output: Tensor, queue: Tensor, prototypes: Tensor, bs: int) -> Tensor:
    """Replace the loop and `distributed_sinkhorn`; filling the queue stays."""
    crops = output.split(bs)
    with torch.no_grad():
        held = [rows @ prototypes.T for rows in queue]
    return sslfast.swav_loss(crops[:2], crops[2:], held, temperature=0.1, iterations=3, epsilon=0.05)


# Self-Classifier (elad-amrani/self-classifier, src/loss.py, `Loss`): `out[classifier][view]` are logits, the two large
# views first. With several processes: group=torch.distributed.group.WORLD.


def self_classifier_before(out: list[list[Tensor]], row_tau: float = 0.1, col_tau: float = 0.05) -> Tensor:
    """Predict the classes of one view, even over the batch, from each other; not one small view from another."""
    terms, eps = [], 1e-12
    for views in out:
        targets = [functional.normalize((view / col_tau).softmax(dim=0), p=1, dim=1, eps=eps) for view in views]
        predicted = [functional.normalize((view / row_tau).softmax(dim=1), p=1, dim=0, eps=eps) for view in views]
        even = views[0].shape[0] / views[0].shape[1]
        for j, prediction in enumerate(predicted):
            logarithm = torch.log(even * prediction + eps)
            for i, target in enumerate(targets):
                if i != j and (i < 2 or j < 2):
                    terms.append(-(target * logarithm).sum(dim=1).mean())
    return torch.stack(terms).mean()


def self_classifier_after(out: list[list[Tensor]], row_tau: float = 0.1, col_tau: float = 0.05) -> Tensor:
    """Replace the module's call."""
    return sslfast.self_classifier(out, row_tau, col_tau, eps=1e-12)


def main() -> None:
    """Compare value and gradients of each pair, in float64."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    features = torch.randn(64, 32, requires_grad=True)
    z1, z2 = (torch.randn(32, 48).requires_grad_() for _ in range(2))
    prototypes = functional.normalize(torch.randn(30, 16), dim=1)
    queue = functional.normalize(torch.randn(2, 24, 16), dim=2)
    output = (functional.normalize(torch.randn(5 * 8, 16), dim=1) @ prototypes.T).requires_grad_()
    out = [[torch.randn(16, classes).requires_grad_() for _ in range(4)] for classes in (10, 20)]
    compare("SimCLR", simclr_before(features), simclr_after(features), [features])
    compare("Barlow Twins", barlow_twins_before(z1, z2), barlow_twins_after(z1, z2), [z1, z2])
    arguments = output, queue, prototypes, 8
    compare("SwAV", swav_before(*arguments), swav_after(*arguments), [output])
    heads = [view for views in out for view in views]
    compare("Self-Classifier", self_classifier_before(out), self_classifier_after(out), heads)


def compare(name: str, before: Tensor, after: Tensor, inputs: list[Tensor]) -> None:
    """Print both values and the largest difference of a gradient's entry, and demand equality to twelve digits."""
    pairs = zip(torch.autograd.grad(before, inputs), torch.autograd.grad(after, inputs), strict=True)
    difference = max(float((old - new).abs().max() / old.abs().max()) for old, new in pairs)
    print(f"{name}: before {before.item():.12f}, after {after.item():.12f}, gradients differ by {difference:.0e}")
    if abs(before.item() - after.item()) > 1e-12 * abs(before.item()) or difference > 1e-12:
        raise SystemExit(f"{name}: before and after differ")


if __name__ == "__main__":
    main()
