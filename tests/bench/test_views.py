"""The benchmark of views: everybody makes two views of every image of an epoch."""

import pytest
import torch

from sslfast.bench import views as case

SIZE = (48, 16, 32)


@pytest.mark.parametrize("how", [case.OURS, case.DALI, case.DEFINITION, case.KORNIA, *case.TORCHVISION[:2]])
def test_all_make_an_epoch_of_two_views(how):
    pytest.importorskip({case.KORNIA: "kornia", case.DALI: "nvidia.dali"}.get(how, "torch"))
    torch.manual_seed(0)
    make = case.maker(SIZE, how)
    for _ in range(2):
        batches = list(make())
        found = torch.cat([torch.cat(list(batch)) for batch in batches])
        assert found.shape == (96, 3, 32, 32) and found.dtype == torch.float32
        assert found.min() >= 0 and found.max() <= 1 and abs(float(found.mean()) - 0.5) < 0.03
        # Noise that is enlarged loses spread, and grey views have less.
        assert 0.15 < float(found.std()) < 0.28


@pytest.mark.parametrize("how", [case.OURS, case.DALI, case.TORCHVISION[0]])
def test_all_decode_the_files(how):
    pytest.importorskip({case.DALI: "nvidia.dali"}.get(how, "torch"))
    torch.manual_seed(0)
    make = case.maker((9, 4, 24), how, files=True)
    for _ in range(2):
        found = torch.cat([torch.cat(list(batch)) for batch in make()])
        assert found.shape == (18, 3, 24, 24) and 0.35 < float(found.mean()) < 0.65


def test_an_epoch_is_a_turn():
    assert case.epoch(SIZE, case.OURS)() is None
