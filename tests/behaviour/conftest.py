"""What the shipped bundle does, not how well: tests of behaviour (Ribeiro et al. 2020).

Real slices are a seeded sample of the training folder, of which the bundle has seen most: these
tests say that it behaves sensibly, never how accurate it is. The real slices' planes are not
known. Phantoms are always there, but are not what the bundle was trained on.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from btray.core.answers import Prediction
from btray.core.bundle import load_bundle
from btray.core.images import decode, encode_png
from btray.core.labels import CLASS_NAMES
from btray.core.predictor import Predictor
from btray.core.reference import reference_bundle
from btray.data.sources.phantom import PhantomSlice, phantom_patient

PER_CLASS = 20
BATCH = 16

Images = Sequence[np.ndarray]
"""Grey pixels [height, width], uint8, each of its own size."""
Answer = Callable[[Images], list[Prediction]]


@pytest.fixture(scope="session")
def answer() -> Answer:
    """The shipped bundle's answers for grey pixels, on the way any file takes."""
    predictor = Predictor(load_bundle(reference_bundle()), "cpu")

    def ask(images: Images) -> list[Prediction]:
        files = [encode_png(np.ascontiguousarray(image)) for image in images]
        starts = range(0, len(files), BATCH)
        return [one for start in starts for one in predictor.predict(files[start : start + BATCH])]

    return ask


@pytest.fixture(scope="session")
def slices(real_slices: Path) -> dict[str, list[np.ndarray]]:
    """Pixels of some real slices of each class."""
    pick = random.Random(0)
    folders = {name: sorted((real_slices / "Training" / name).iterdir()) for name in CLASS_NAMES}
    return {
        name: [decode(file.read_bytes()) for file in pick.sample(files, PER_CLASS)]
        for name, files in folders.items()
    }


@pytest.fixture(scope="session")
def answers(slices: dict[str, list[np.ndarray]], answer: Answer) -> dict[str, list[Prediction]]:
    """The answers for the real slices as they are."""
    return {name: answer(images) for name, images in slices.items()}


@pytest.fixture(scope="session")
def phantoms() -> list[PhantomSlice]:
    """Phantoms, equally many of every class."""
    return [phantom_patient(index, 0, 1)[0] for index in range(24)]


@pytest.fixture(scope="session")
def phantom_answers(phantoms: list[PhantomSlice], answer: Answer) -> list[Prediction]:
    """The answers for the phantoms as they are."""
    return answer([one.image for one in phantoms])


@pytest.fixture(scope="session")
def without() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Fill a mask with the grey of what is around it, the edge softened."""

    def fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        near = ndimage.binary_dilation(mask, iterations=8)
        near &= ~ndimage.binary_dilation(mask, iterations=2)
        whole = ndimage.binary_dilation(mask, iterations=3).astype(float)
        share = ndimage.gaussian_filter(whole, 2)
        return np.rint(image * (1 - share) + np.median(image[near]) * share).astype(np.uint8)

    return fill
