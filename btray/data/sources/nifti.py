"""NIfTI volumes with a table of labels: slices across one axis."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btray.core.images import MAX_PIXELS, ImageError, encode_png, window
from btray.core.labels import CLASS_NAMES
from btray.core.pseudonyms import Pseudonyms
from btray.data.sources.base import (
    Item,
    Listing,
    Record,
    Rejected,
    checked_listing,
    without_patient,
)
from btray.data.sources.labels import Labels, read_labels
from btray.data.sources.tree import Tree, shown
from btray.errors import UserError

if TYPE_CHECKING:
    import nibabel

SUFFIXES: Final = (".nii", ".nii.gz")
PERCENTILES: Final = (0.5, 99.5)
"""Of a whole volume's intensities: what is shown as black and white."""
Axis = Literal["axial", "coronal", "sagittal"]
_NORMALS: Final = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis a slice is normal to, in RAS+: left to right, back to front, foot to head."""
_MAX_UNPACKED: Final = 2 * 1024**3
_MAX_VOXELS: Final = 20 * MAX_PIXELS
_HEADER_BYTES: Final = 540
_SQUARE: Final = 1.01
"""Pixels are resampled when one side is so many times the other."""


@dataclass(frozen=True)
class SliceRange:
    """Which slices of a volume: from, to (not included), and every how many.

    Bounds are slice numbers from 0 (foot, back or left), or fractions 0..1 of the number of
    slices.
    """

    start: float = 0.0
    stop: float = 1.0
    fractions: bool = True
    every: int = 1

    @classmethod
    def parse(cls, text: str | None, every: int = 1) -> Self:
        """Read `FROM:TO`: whole numbers are slice numbers, numbers with a point fractions.

        Raises:
            UserError: not of this form, a fraction outside 0..1, or an empty range.

        """
        if text is None:
            return cls(every=every)
        fractions = "." in text
        try:
            parts = [float(part) if fractions else int(part) for part in text.split(":")]
            start, stop = parts
        except ValueError:
            raise UserError(
                f"--slices {text}: write FROM:TO, in slice numbers (40:110) or fractions (0.3:0.7)"
            ) from None
        if not (0 <= start < stop and (stop <= 1 or not fractions)):
            raise UserError(f"--slices {text}: an empty range; fractions are within 0.0:1.0")
        return cls(start, stop, fractions, every)

    def numbers(self, count: int) -> range:
        """Return the numbers of the slices to take from a volume with so many."""
        factor = count if self.fractions else 1
        return range(round(self.start * factor), min(count, round(self.stop * factor)), self.every)


@dataclass(frozen=True)
class NiftiTree:
    """A folder or bucket of NIfTI volumes."""

    root: str
    """The folder, absolute, or a URI."""
    labels: str
    """Table of labels by path: `path,label[,patient_id][,split]`."""
    pseudonyms: Pseudonyms = field(repr=False)
    axis: Axis = "axial"
    """The slices' plane."""
    slices: SliceRange = SliceRange()
    """Which slices of every volume."""
    class_names: tuple[str, ...] = CLASS_NAMES
    """The classes a label may name."""
    kind: str = "nifti"

    @property
    def place(self) -> str:
        """The folder."""
        return shown(self.root)

    def listing(self) -> Listing:
        """List the volumes that have a label; their slices are counted by their headers.

        Raises:
            UserError: no such folder, an unusable table of labels, or nothing to import.

        """
        labels = read_labels(self.labels, self.class_names, keys=("path",))
        walked = Tree(self.root).walk()
        items: list[Item] = []
        rejected = list(walked.rejected)
        for name in (file.name for file in walked.files):
            found = self._take(name, labels)
            if isinstance(found, Item):
                items.append(found)
            else:
                rejected.append(found)
        unknown = sum(item.patient_id == self.pseudonyms("file", item.name) for item in items)
        notes = (*labels.notes(), *without_patient(unknown, len(items)))
        return checked_listing(self.place, items, rejected, notes, suffix="#")

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Hash names, labels, contents, patients and the settings; the key has no part in it."""
        digest = hashlib.sha256(f"{self.axis} {self.slices}\n".encode())
        owners: dict[str | None, str] = {}
        hashes = Tree(self.root).hashes(item.name for item in items)
        for item, content in zip(items, hashes, strict=True):
            owner = owners.setdefault(item.patient_id, item.name)
            line = f"{item.name}\0{item.label}\0{item.split}\0{owner}\0{content}\n"
            digest.update(line.encode())
        return digest.hexdigest()

    def read(self, item: Item) -> Iterator[Record]:
        """Yield the chosen slices of one volume as 8-bit PNGs, upright.

        Raises:
            OSError: it cannot be read.
            ImageError: damaged, not three-dimensional, without an orientation or no slices.

        """
        if item.label is None:
            raise ValueError(f"{item.name}: a volume has a label of the table")
        volume, spacing = read_volume(Tree(self.root).read(item.name))
        normal = _NORMALS[self.axis]
        numbers = self.slices.numbers(volume.shape[normal])
        if not numbers:
            raise ImageError(
                "no_slices", f"--slices leaves none of its {volume.shape[normal]} slices"
            )
        low, high = np.percentile(volume, PERCENTILES)
        sides = [side for axis, side in enumerate(spacing) if axis != normal]
        digits = max(3, len(str(volume.shape[normal] - 1)))
        for number in numbers:
            across = np.take(volume, number, axis=normal)
            pixels = _upright(window(across.astype(np.float64), float(low), float(high)), sides)
            yield Record(
                name=f"{item.name}#{self.axis}-{number:0{digits}d}",
                data=encode_png(pixels),
                label=item.label,
                split=item.split,
                patient_id=item.patient_id,
                plane=self.axis,
            )

    def _take(self, name: str, labels: Labels) -> Item | Rejected:
        if not name.lower().endswith(SUFFIXES):
            return Rejected(name, "not_nifti", f"not named like a volume ({', '.join(SUFFIXES)})")
        known = labels.find({"path": name})
        if known is None:
            return Rejected(name, "no_label", "has no label in the table of labels")
        return Item(
            name,
            label=known.label,
            split=known.split,
            patient_id=self.pseudonyms("patient", known.patient_id)
            if known.patient_id
            else self.pseudonyms("file", name),
            images=self._count(name),
        )

    def _count(self, name: str) -> int:
        """Return how many slices a volume will yield; 1 when its header cannot tell."""
        try:
            head = Tree(self.root).head(name, 4 * _HEADER_BYTES)
            across = _shape(_unpacked(head, _HEADER_BYTES))[_NORMALS[self.axis]]
        except (OSError, ImageError):
            return 1  # the reader meets it again and puts it into quarantine
        return max(1, len(self.slices.numbers(across)))


def read_volume(data: bytes) -> tuple[NDArray[np.floating[Any]], tuple[float, ...]]:
    """Return the intensities [right, anterior, superior] of a volume and its voxels' sides in mm.

    Axes are turned and mirrored to the nearest of RAS+, without resampling.

    Raises:
        ImageError: damaged, of other than three dimensions, without an orientation, not
            grey or not finite, or too large.

    """
    import nibabel

    try:
        image = nibabel.Nifti1Image.from_bytes(_unpacked(data, _MAX_UNPACKED))
        _check_header(image.header)
        canonical = nibabel.as_closest_canonical(image)
        volume = np.asarray(canonical.dataobj, dtype=np.float32)
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - nibabel raises many types on bad bytes
        raise ImageError("unreadable", f"damaged, or not NIfTI: {_line(error)}") from None
    if not np.isfinite(volume).all():
        raise ImageError("not_finite", "intensities that are not finite numbers")
    sides = tuple(float(side) for side in canonical.header.get_zooms()[:3])
    return volume.reshape(volume.shape[:3]), sides


def _shape(head: bytes) -> tuple[int, ...]:
    """Return the voxels along right, anterior and superior, of a header alone."""
    import nibabel

    try:
        header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(head), check=False)
        turned = nibabel.io_orientation(header.get_best_affine())[:, 0].tolist()
        return tuple(header.get_data_shape()[turned.index(axis)] for axis in range(3))
    except Exception as error:  # noqa: BLE001 - nibabel raises many types on bad bytes
        raise ImageError("unreadable", f"damaged, or not NIfTI: {_line(error)}") from None


def _check_header(header: "nibabel.Nifti1Header") -> None:
    shape = header.get_data_shape()
    if len(shape) < 3 or any(side != 1 for side in shape[3:]):
        raise ImageError(
            "not_3d", f"of shape {' x '.join(map(str, shape))}; give one three-dimensional volume"
        )
    if header.get_data_dtype().kind not in "iuf":
        raise ImageError("not_grey", "voxels that are no single real number")
    if int(np.prod(shape, dtype=np.int64)) > _MAX_VOXELS:
        raise ImageError("too_large", f"more voxels than the limit of {_MAX_VOXELS:,}")
    if not header["sform_code"] and not header["qform_code"]:
        raise ImageError("no_orientation", "says not how it lies (sform and qform codes are 0)")


def _unpacked(data: bytes, limit: int) -> bytes:
    """Return at most `limit` bytes of a volume that may be packed by gzip."""
    if not data.startswith(b"\x1f\x8b"):
        return data[:limit]
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return stream.read(limit)
    except (EOFError, zlib.error) as error:
        raise ImageError("unreadable", f"damaged gzip: {error}") from None


def _upright(across: NDArray[np.uint8], sides: list[float]) -> NDArray[np.uint8]:
    """Turn a slice [first, second RAS axis] as it is read: head or nose up, patient's left right.

    On a sagittal slice the nose is left. Pixels that are not square are resampled to the
    shorter side.
    """
    pixels = np.ascontiguousarray(across[::-1, ::-1].T)
    width_mm, height_mm = sides
    shorter = min(sides)
    if not shorter > 0 or max(sides) / shorter < _SQUARE:
        return pixels
    height, width = pixels.shape
    size = (round(width * width_mm / shorter), round(height * height_mm / shorter))
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError("too_large", f"{size[0]} x {size[1]} square pixels are above the limit")
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
