"""Folders of small images, and a reader that needs no Ray."""

import io
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
MakeFolder = Callable[..., Path]


def picture(seed: int, size: int = 48) -> np.ndarray:
    """Smooth random grey pixels [size, size]: different seeds are never near duplicates."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    def make(
        per_class: int = 6, classes: tuple[str, ...] = CLASSES, under: str = "", seed: int = 0
    ) -> Path:
        root = tmp_path / "images"
        for number, name in enumerate(classes):
            folder = root / under / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                data = encode(picture(seed * 100_000 + number * 1000 + index))
                (folder / f"{name}-{index:03d}.png").write_bytes(data)
        return root

    return make


@pytest.fixture
def draw() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def local_reader() -> Callable[..., Iterator[pa.Table]]:
    """The worker's own function, called in this process."""
    from btray.data.reading import read_items

    def read(source: object, items: tuple[object, ...]) -> Iterator[pa.Table]:
        for start in range(0, len(items), 10):
            table = pa.Table.from_pylist([asdict(item) for item in items[start : start + 10]])
            yield from read_items(table, source)

    return read


@pytest.fixture
def load(local_reader: Callable[..., Iterator[pa.Table]], tmp_path: Path) -> Callable[..., object]:
    """Import whatever source is at a place, without Ray; options are of reading or importing."""
    from btray.data.dataset import Dataset
    from btray.data.importer import ImportOptions, run_import
    from btray.data.sources.detect import SourceOptions, open_source

    def run(place: object, name: str = "dataset", **options: object) -> Dataset:
        def some(model: type) -> dict[str, object]:
            return {key: value for key, value in options.items() if key in model.model_fields}

        target = str(tmp_path / name)
        with open_source(str(place), SourceOptions(**some(SourceOptions))) as source:
            run_import(source, target, ImportOptions(**some(ImportOptions)), reader=local_reader)
        return Dataset.open(target)

    return run
