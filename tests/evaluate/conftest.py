"""A small data set of images in many shapes and formats, made without Ray."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from btray.core.bundle import Bundle
from btray.core.labels import CLASS_NAMES
from btray.data.dataset import Dataset
from btray.data.importer import ImportOptions, run_import
from btray.data.reading import read_items
from btray.data.sources.base import Item, Source
from btray.data.sources.imagefolder import ImageFolder

PER_CLASS = 40


def read_here(source: Source, items: tuple[Item, ...]) -> Iterator[pa.Table]:
    """The worker's own function, called in this process."""
    yield from read_items(pa.Table.from_pylist([asdict(item) for item in items]), source)


def draw(seed: int, height: int, width: int) -> Image.Image:
    """Smooth random grey pixels: different seeds are never near duplicates."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(picture: Image.Image, folder: Path, index: int) -> None:
    """Save a picture in one of several formats."""
    if index % 4 == 0:
        picture.save(folder / f"{index}.jpg", quality=80)
    elif index % 4 == 1:
        picture.convert("RGB").save(folder / f"{index}.jpg", quality=90)
    elif index % 4 == 2:
        deep = np.asarray(picture).astype(np.uint16) * 16
        Image.fromarray(deep).save(folder / f"{index}.png")
    else:
        picture.save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """160 images; two in five of them are the test split, more than a batch of evaluation."""
    root = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASS_NAMES):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for index in range(PER_CLASS):
            height, width = rng.integers(24, 70, 2).tolist()
            save(draw(1000 * number + index, height, width), folder, index)
    run_import(
        ImageFolder(str(root / "images")),
        str(root / "dataset"),
        ImportOptions(validation=0.1, test=0.5),
        reader=read_here,
    )
    return Dataset.open(str(root / "dataset"))


@pytest.fixture(scope="session")
def bundle(
    make_bundle: Callable[..., Bundle],
    dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """An untrained bundle that says it was trained on the data set."""
    provenance = make_bundle(tmp_path_factory.mktemp("first")).card.provenance
    ours = provenance.model_copy(update={"data_hash": dataset.manifest.content_hash})
    return make_bundle(tmp_path_factory.mktemp("second"), provenance=ours.model_dump())
