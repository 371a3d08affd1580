import numpy as np
import pytest
import torch

from btray.config import AugmentConfig, ImageConfig
from btray.data.stream import Rows, Shard, SquareBlocks, balanced_order, epoch_order

SIZE = 32


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 256, (n, SIZE, SIZE), dtype=np.uint8) for n in (7, 1, 30, 12)]
    splits = np.array(["train"] * 40 + ["validation"] * 10)
    return Rows(SquareBlocks(blocks), rng.integers(0, 4, 50), rng.permutation(splits))


def shard_of(rows, rank=0, world_size=1):
    return Shard(
        rows, ImageConfig(size=SIZE), AugmentConfig(), 5, rank, world_size, torch.device("cpu")
    )


def test_rows_are_gathered_from_whichever_block_they_are_in(rows):
    everything = rows.squares.gather(np.arange(50))
    chosen = np.array([49, 0, 6, 7, 8, 7])
    squares, labels = rows.gather(chosen)
    assert np.array_equal(squares.numpy(), everything[chosen])
    assert np.array_equal(labels.numpy(), rows.labels[chosen])


def test_an_epoch_orders_every_row_once_and_each_anew(rows):
    train = rows.indices("train")
    first, second = epoch_order(train, 5, 0), epoch_order(train, 5, 1)
    assert sorted(first) == sorted(second) == sorted(train)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(train, 5, 0))


def test_an_epoch_goes_on_with_the_very_next_batch(rows):
    shard = shard_of(rows)
    whole = list(shard.training(2, 8))
    rest = list(shard.training(2, 8, start_step=3))
    assert len(whole) == 5
    for (images, labels), (again, same) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


def test_two_ranks_share_the_batches_of_one(rows):
    alone = [labels for _, labels in shard_of(rows).training(0, 8)]
    shares = [[labels for _, labels in shard_of(rows, r, 2).training(0, 8)] for r in (0, 1)]
    for together, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(together, torch.cat(parts))


def test_a_balanced_epoch_draws_every_class_equally_often():
    rows, labels = np.arange(100, 130), np.array([0] * 20 + [1] * 7 + [3] * 3)
    order = balanced_order(rows, labels, 5, 0)
    assert len(order) == 30
    drawn = np.bincount(order - 100, minlength=30)
    assert [drawn[labels == k].sum() for k in (0, 1, 3)] == [10, 10, 10]
    assert drawn[labels == 0].max() == 1  # ten of twenty, none twice
    assert set(drawn[labels == 1]) == {1, 2}
    assert set(drawn[labels == 3]) == {3, 4}
    assert np.array_equal(order, balanced_order(rows, labels, 5, 0))
    assert not np.array_equal(order, balanced_order(rows, labels, 5, 1))
    triples = labels[order.reshape(10, 3) - 100]
    assert (np.sort(triples, axis=1) == [0, 1, 3]).all()
