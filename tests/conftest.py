"""What any test may use: one shared Ray cluster, the real slices, seeded property tests."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from btray.core.bundle import Bundle

settings.register_profile("btray", deadline=None, derandomize=True, database=None)
settings.load_profile("btray")

PER_CLASS = 60
"""Pictures of each class in the data set that trains in seconds."""


def slices_root() -> Path | None:
    """Return the data set in BTRAY_DATA (else ../shared/data), if it is there."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("BTRAY_DATA") or default) / "brain-tumor-mri"
    return root if root.is_dir() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses `cluster` and `real_slices`; skip what needs slices that are not there."""
    absent = pytest.mark.skip(
        reason="no real slices: set BTRAY_DATA to the folder of brain-tumor-mri"
    )
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "cluster" in fixtures:
            item.add_marker("cluster")
        if "real_slices" in fixtures:
            item.add_marker("real")
        if item.get_closest_marker("real") and slices_root() is None:
            item.add_marker(absent)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep exports out of the user's cache, and the user's out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_cluster_unasked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts Ray without the mark: two clusters take each other's agents."""

    def has_started() -> bool:
        return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())

    before = has_started()
    yield
    if has_started() and not before and not request.node.get_closest_marker("cluster"):
        sys.modules["ray"].shutdown()
        pytest.fail("started Ray; give the test the fixture or the mark `cluster`")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local Ray cluster for the whole session, started by btray's own `connect`."""
    import ray

    from btray.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # Workers keep the environment they are started in; a test's S3 server takes any key.
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        connect()
        yield
        ray.shutdown()


@pytest.fixture
def cluster_address(cluster: None) -> str:
    """Where the session's cluster is."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def real_slices() -> Path:
    """The folder `brain-tumor-mri` with the real slices, as its authors laid it out."""
    root = slices_root()
    assert root is not None, "unreachable: the test was skipped"
    return root


@pytest.fixture(scope="session")
def make_bundle() -> "Callable[..., Bundle]":
    """Write the bundle of an untrained compact network; changes are fields of its card."""
    import torch

    from btray.config import Config, ImageConfig
    from btray.core.bundle import save_bundle
    from btray.core.calibration import Calibration
    from btray.core.card import FORMAT_VERSION, Card, Provenance
    from btray.core.labels import CLASS_NAMES
    from btray.core.zoo import create_model

    def make(directory: Path, **changes: object) -> "Bundle":
        fields: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "name": "tiny",
            "class_names": CLASS_NAMES,
            "model": Config().model,
            "image": ImageConfig(size=32),
            "metrics": {"val_accuracy": 0.5},
            "calibration": Calibration(
                temperature=1.5, coverage=0.95, set_threshold=0.2, ood_threshold=0.0, rows=40
            ),
            "provenance": Provenance(
                btray_version="0",
                code_version=None,
                data_hash="0" * 64,
                seed=0,
                run="tiny-run",
                epoch=1,
                created="2026-01-01T00:00:00+00:00",
            ),
            "train_config": Config().model_dump(mode="json"),
            "weights_sha256": "",
        }
        card = Card.model_validate(fields | changes)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = create_model(card.model, len(card.class_names), card.image.size)
        weights = {name: value.contiguous() for name, value in network.state_dict().items()}
        weights["head.weight"] *= 100  # so that images do not all get the same answer
        return save_bundle(directory, weights, card)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(
    make_bundle: "Callable[..., Bundle]", tmp_path_factory: pytest.TempPathFactory
) -> "Bundle":
    """A bundle on disk for all tests to read; a test that alters one makes its own."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def phantom(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of synthetic slices."""
    from btray.data.importer import import_dataset
    from btray.data.sources.phantom_source import PhantomSource

    folder = tmp_path_factory.mktemp("synthetic") / "phantom"
    import_dataset(PhantomSource(160), str(folder))
    return folder


@pytest.fixture(scope="session")
def make_dicom() -> Callable[..., bytes]:
    """The bytes of a DICOM file; keyword arguments are its elements, None leaves one out."""
    import io

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    def make(
        pixels: Any = None,
        syntax: str = ExplicitVRLittleEndian,
        sop_class: str = MRImageStorage,
        preamble: bool = True,
        **elements: object,
    ) -> bytes:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        fields: dict[str, object] = {
            "SOPClassUID": sop_class,
            "SOPInstanceUID": generate_uid(),
            "StudyInstanceUID": generate_uid(),
            "SeriesInstanceUID": generate_uid(),
            "Modality": "MR",
            "PatientID": "P1",
        }
        if pixels is not None:
            fields |= {
                "Rows": pixels.shape[-2],
                "Columns": pixels.shape[-1],
                "SamplesPerPixel": 1,
                "PhotometricInterpretation": "MONOCHROME2",
                "BitsAllocated": pixels.itemsize * 8,
                "BitsStored": pixels.itemsize * 8,
                "HighBit": pixels.itemsize * 8 - 1,
                "PixelRepresentation": int(pixels.dtype.kind == "i"),
                "PixelData": pixels.tobytes(),
            }
            if pixels.ndim == 3:
                fields["NumberOfFrames"] = len(pixels)
        for name, value in (fields | elements).items():
            if value is not None:
                setattr(dataset, name, value)
        if pixels is not None:
            dataset["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
        if syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax)
        buffer = io.BytesIO()
        if preamble:
            dataset.save_as(buffer, enforce_file_format=True)
        else:
            del dataset.file_meta
            dataset.save_as(buffer, implicit_vr=False, little_endian=True)
        return buffer.getvalue()

    return make


def texture(number: int, rng: np.random.Generator) -> np.ndarray:
    """Noise [48, 48] with nothing, horizontal or vertical stripes, or a chequerboard in it."""
    pixels = rng.integers(0, 120, (48, 48))
    rows, columns = (np.indices((48, 48)) + rng.integers(0, 12, (2, 1, 1))) // 6 % 2
    patterns = (np.zeros_like(rows), rows, columns, rows ^ columns)
    return (pixels + 130 * patterns[number]).astype(np.uint8)


def read_here(source: object, items: tuple[object, ...]) -> Iterator[object]:
    """The worker's own function, called in this process."""
    from btray.data.reading import _item_table, read_items

    yield from read_items(_item_table(items), source)


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set any network learns in a few steps."""
    from PIL import Image

    from btray.core.labels import CLASS_NAMES
    from btray.data.importer import run_import
    from btray.data.sources.imagefolder import ImageFolder

    root = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASS_NAMES):
        (root / "images" / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            picture = Image.fromarray(texture(number, rng))
            picture.save(root / "images" / name / f"{index:03d}.png")
    run_import(ImageFolder(str(root / "images")), str(root / "dataset"), reader=read_here)
    return root / "dataset"
