import numpy as np
import pytest
import torch

from btray.config import TrainConfig
from btray.core.mixing import mix


@pytest.fixture
def batch():
    images = torch.arange(1, 5).view(4, 1, 1, 1).expand(4, 1, 20, 30).float() / 4
    return images.contiguous(), torch.tensor([0, 1, 2, 0])


def mixed(batch, seed=0, **settings):
    return mix(*batch, 3, TrainConfig(**settings), np.random.default_rng(seed))


def test_without_mixing_nothing_changes(batch):
    images, labels = mixed(batch)
    assert images is batch[0]
    assert labels is batch[1]


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 1, "cutmix": 1}])
@pytest.mark.parametrize("seed", range(4))
def test_an_image_has_as_much_of_each_as_its_label_says(batch, seed, settings):
    images, shares = mixed(batch, seed, **settings)
    own = torch.nn.functional.one_hot(batch[1], 3).float()
    values = batch[0][:, 0, 0, 0]
    # rows 1 and 2 differ in class: their share tells how much of the image is their own
    kept = float(shares[1, 1])
    torch.testing.assert_close(shares, kept * own + (1 - kept) * own.flip(0))
    expected = kept * values + (1 - kept) * values.flip(0)
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), expected)


def test_cutmix_pastes_one_box(batch):
    images, _ = mixed(batch, cutmix=1.0)
    assert set(images[0].unique().tolist()) == {0.25, 1.0}
    rows, columns = np.nonzero(images[0, 0].numpy() == 1.0)
    assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == len(rows)
    assert float(batch[0][0].unique()) == 0.25


def test_the_same_draws_mix_alike(batch):
    assert torch.equal(mixed(batch, 5, mixup=1)[0], mixed(batch, 5, mixup=1)[0])
    assert not torch.equal(mixed(batch, 5, mixup=1)[0], mixed(batch, 6, mixup=1)[0])
