"""Rows streamed to a file of the node are those of the object store, to the bit."""

import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import ray
import torch

from btray.config import AugmentConfig, ImageConfig, resolve_config
from btray.data.cache import NodeCaches, SquareFile, fits_in_memory
from btray.data.dataset import Dataset
from btray.data.decoding import decode_rows
from btray.data.stream import Rows, Shard
from btray.errors import UserError

SIZE = 32
SPLITS = ("train", "validation")


def settings(**changes):
    tree = {"image": {"size": SIZE}, "data": {"cache_limit": 0, **changes}}
    return resolve_config(tree)


@pytest.fixture
def dataset(phantom):
    return Dataset.open(str(phantom))


@pytest.fixture
def node(cluster):
    return ray.get_runtime_context().get_node_id()


@pytest.fixture
def caches(dataset, tmp_path):
    made = NodeCaches(dataset, SPLITS, settings(cache_dir=str(tmp_path)))
    yield made
    made.close()


def batches(rows, augment):
    shard = Shard(rows, ImageConfig(size=SIZE), augment, 3, 0, 1, torch.device("cpu"))
    yield from shard.training(1, 16)


def test_both_ways_give_the_same_batches_to_the_bit(caches, dataset, node):
    names = dataset.manifest.class_names
    blocks = decode_rows(dataset, SPLITS, ImageConfig(size=SIZE))
    memory = Rows.fetch(blocks, names, SIZE)
    streamed = Rows.fetch(caches.serve({node})[node], names, SIZE)
    assert np.array_equal(streamed.labels, memory.labels)
    assert np.array_equal(streamed.splits, memory.splits)
    assert len(streamed.labels) == sum(dataset.count(split) for split in SPLITS)
    pairs = zip(batches(streamed, AugmentConfig()), batches(memory, AugmentConfig()), strict=True)
    for (images, labels), (same_images, same_labels) in pairs:
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def gone(rows):
    """Wait for the end of the file's writer; say whether it came."""
    for _ in range(100):
        if not Path(rows.path).exists():
            return True
        time.sleep(0.1)
    return False


def test_the_file_has_no_name_and_ends_with_its_writer(caches, node, tmp_path):
    rows = caches.serve({node})[node]
    assert list(tmp_path.iterdir()) == []
    assert Path(rows.path).stat().st_size == rows.table.num_rows * SIZE**2
    caches.close()
    assert gone(rows)


def test_rows_are_decoded_again_when_their_writer_is_lost(caches, node):
    first = caches.serve({node})[node]
    assert caches.serve({node})[node] is first
    ray.kill(caches._writers[node])
    assert gone(first)  # Ray ends processes behind the caller's back
    second = caches.serve({node})[node]
    assert second.path != first.path
    assert second.table == first.table
    assert len(SquareFile(second.path, SIZE).gather(np.arange(second.table.num_rows)))


def test_a_lost_node_is_left_out(caches, node):
    assert caches.serve({node, "e" * 56}).keys() == {node}


def test_a_folder_without_room_is_one_clear_line(caches, dataset, node, monkeypatch):
    monkeypatch.setattr(caches, "_total", 10**13)
    with pytest.raises(UserError, match=r"cache_dir .*cannot hold 10,000,000,000,000") as error:
        caches.serve({node})
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_one_clear_line(cluster, dataset, node):
    caches = NodeCaches(dataset, SPLITS, settings(cache_dir="/nowhere"))
    with pytest.raises(UserError, match=r"/nowhere.*No such file") as error:
        caches.serve({node})
    assert "\n" not in str(error.value)
    caches.close()


def test_a_missing_row_is_noticed(cluster, dataset, node, phantom, tmp_path):
    shutil.copytree(phantom, tmp_path / "partial")
    part = next((tmp_path / "partial" / "rows").iterdir())
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(part).slice(5), part)
    caches = NodeCaches(Dataset.open(str(tmp_path / "partial")), SPLITS, settings())
    with pytest.raises(UserError, match=r"rows are missing or damaged \(\d+ rows of \d+\)"):
        caches.serve({node})
    caches.close()


def test_what_lies_past_the_end_of_the_file_is_never_read_as_pixels(tmp_path):
    (tmp_path / "squares").write_bytes(bytes(3 * SIZE**2))
    squares = SquareFile(str(tmp_path / "squares"), SIZE)
    assert squares.gather(np.array([2, 0])).shape == (2, SIZE, SIZE)
    with pytest.raises(RuntimeError, match="ends at row 3"):
        squares.gather(np.array([3]))


def test_the_limit_decides_where_rows_are_kept(cluster, dataset):
    size = sum(dataset.count(split) for split in SPLITS) * SIZE**2
    assert fits_in_memory(dataset, SPLITS, settings(cache_limit=size))
    assert not fits_in_memory(dataset, SPLITS, settings(cache_limit=size - 1))
    assert fits_in_memory(dataset, SPLITS, settings(cache_limit=None))
