import pytest
import torch


@pytest.fixture(scope="session")
def digits():
    """Real images: 1,400 training rows and 397 validation rows of 64 pixels, 10 classes."""
    from sklearn.datasets import load_digits  # a machine with a GPU may not have it, and need not for its tests

    features, labels = load_digits(return_X_y=True)
    features, labels = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rest, held_out = order[:1400], order[1400:]
    return (features[rest], labels[rest]), (features[held_out], labels[held_out])
