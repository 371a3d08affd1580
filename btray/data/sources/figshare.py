"""The brain tumour data set of Cheng et al. as Figshare has it: MATLAB files of slices.

Jun Cheng, 'brain tumor dataset', Figshare 2017, doi:10.6084/m9.figshare.1512427: 3,064
T1-weighted contrast-enhanced slices of 233 patients, a `.mat` file a slice, and `cvind.mat`
with the fold of every file in the authors' five-fold cross-validation by patient.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from btray.core import files
from btray.core.images import MAX_PIXELS, ImageError, encode_png, stretch
from btray.core.labels import CLASS_NAMES, canonical_label
from btray.core.pseudonyms import Pseudonyms
from btray.data.sources.base import Item, Listing, Record, Rejected, checked_listing
from btray.data.sources.tree import Tree, Walked, shown
from btray.errors import UserError

if TYPE_CHECKING:
    import h5py

FOLDS: Final = "cvind.mat"
"""The file with the folds."""
_LABELS: Final = {1: "meningioma", 2: "glioma", 3: "pituitary"}
_SEQUENCE: Final = "T1ce"
_FOLD_COUNT: Final = 5
_HDF5: Final = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Figshare:
    """A folder or bucket with the unpacked data set."""

    root: str
    """The folder, absolute, or a URI."""
    pseudonyms: Pseudonyms = field(repr=False)
    class_names: tuple[str, ...] = CLASS_NAMES
    """The classes; its three must be among them."""
    kind: str = "figshare"

    @property
    def place(self) -> str:
        """The folder."""
        return shown(self.root)

    def listing(self) -> Listing:
        """List the `.mat` files and give each its fold, if `cvind.mat` is there.

        Raises:
            UserError: no such folder, no `.mat` file, a damaged `cvind.mat` or one that
                belongs to fewer files, or a class list without the three classes.

        """
        self._check_classes()
        walked = Tree(self.root).walk()
        folds = self._folds(walked)
        items, rejected = [], list(walked.rejected)
        for name in (file.name for file in walked.files):
            path = PurePosixPath(name)
            if path.suffix.lower() == ".mat" and path.stem.isdecimal():
                number = int(path.stem)
                items.append(Item(name, number=number, fold=self._fold(folds, number)))
            elif path.name != FOLDS:
                rejected.append(Rejected(name, "not_figshare", "not named like 17.mat"))
        return checked_listing(self.place, items, rejected)

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Hash the names, the folds and every file's bytes; the key has no part in it."""
        digest = hashlib.sha256()
        hashes = Tree(self.root).hashes(item.name for item in items)
        for item, content in zip(items, hashes, strict=True):
            digest.update(f"{item.name}\0{item.fold}\0{content}\n".encode())
        return digest.hexdigest()

    def read(self, item: Item) -> Iterator[Record]:
        """Yield the slice of one file as an 8-bit PNG, and its tumour as another.

        Raises:
            OSError: it cannot be read.
            ImageError: not version 7.3, damaged, or not of the published structure.

        """
        data = Tree(self.root).read(item.name)
        if data.startswith(b"MATLAB 5.0"):
            raise ImageError(
                "mat_v5", "a .mat of MATLAB 5 to 7; the data set is published as version 7.3"
            )
        slice_ = read_slice(data)
        label = canonical_label(_LABELS[slice_.label], self.class_names)
        if label is None:
            raise ValueError("the listing has checked the classes")
        yield Record(
            name=item.name,
            data=encode_png(stretch(slice_.image)),
            label=label,
            fold=item.fold,
            patient_id=self.pseudonyms("patient", slice_.patient),
            sequence=_SEQUENCE,
            mask=encode_png(slice_.mask),
        )

    def _check_classes(self) -> None:
        missing = [n for n in _LABELS.values() if canonical_label(n, self.class_names) is None]
        if missing:
            raise UserError(
                f"--classes {','.join(self.class_names)}: the Figshare data set also has "
                f"{', '.join(missing)}"
            )

    def _folds(self, walked: Walked) -> NDArray[np.int64] | None:
        found = [f.name for f in walked.files if PurePosixPath(f.name).name == FOLDS]
        if not found:
            return None
        if len(found) > 1:
            raise UserError(f"{self.place}: {FOLDS} is there {len(found)} times; keep one")
        place = shown(files.join(self.root, found[0]))
        try:
            return read_folds(Tree(self.root).read(found[0]))
        except (OSError, ImageError) as error:
            raise UserError(f"{place}: {error}") from None

    def _fold(self, folds: NDArray[np.int64] | None, number: int) -> int | None:
        if folds is None:
            return None
        if not 1 <= number <= len(folds):
            raise UserError(
                f"{self.place}: {FOLDS} has the folds of {len(folds)} files, "
                f"and there is {number}.mat"
            )
        return int(folds[number - 1]) - 1


@dataclass(frozen=True)
class Slice:
    """One file's `cjdata`."""

    label: int
    """1 meningioma, 2 glioma, 3 pituitary."""
    patient: str = field(repr=False)
    """The authors' own number of the patient."""
    image: NDArray[np.generic]
    """[height, width]."""
    mask: NDArray[np.uint8]
    """[height, width], 255 in the tumour and 0 elsewhere."""


def read_slice(data: bytes) -> Slice:
    """Read a version 7.3 `.mat` (HDF5) with the struct `cjdata`.

    MATLAB stores columns first, so that HDF5 shows every array transposed.

    Raises:
        ImageError: damaged or of another structure.

    """
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return _slice(file["cjdata"])
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            "not_figshare",
            f"no .mat of version 7.3 with the data set's cjdata ({' '.join(str(error).split())})",
        ) from None


def _slice(fields: "h5py.Group") -> Slice:
    label = float(_small(fields["label"]).squeeze())
    if label not in _LABELS:
        raise ImageError("unknown_label", f"its label is {label:g}, and not 1, 2 or 3")
    patient = "".join(chr(int(code)) for code in _small(fields["PID"]).ravel()).strip("\0 ")
    if not patient:
        raise ImageError("no_patient", "no PID: nothing says which slices share a patient")
    image, mask = _plane(fields["image"]), _plane(fields["tumorMask"])
    if mask.shape != image.shape:
        raise ImageError("mask_size", f"a mask of {mask.shape} on an image of {image.shape}")
    return Slice(int(label), patient, image, np.where(mask > 0, 255, 0).astype(np.uint8))


def _small(field_: "h5py.Dataset") -> NDArray[Any]:
    if field_.size > 1024:
        raise ImageError("not_figshare", "a label or PID of more than 1,024 values")
    return np.asarray(field_[()])


def _plane(field_: "h5py.Dataset") -> NDArray[Any]:
    if field_.ndim != 2 or field_.dtype.kind not in "iufb":
        raise ImageError("not_figshare", "image or tumorMask is no two-dimensional array")
    if field_.size > MAX_PIXELS:
        raise ImageError("too_large", f"{field_.size:,} pixels; the limit is {MAX_PIXELS:,}")
    return np.ascontiguousarray(np.asarray(field_[()]).T)


def read_folds(data: bytes) -> NDArray[np.int64]:
    """Read `cvind.mat`, of any version: the fold, 1..5, of files 1, 2, 3 … in order.

    Raises:
        ImageError: damaged, or something else.

    """
    try:
        values = _hdf5_folds(data) if _is_hdf5(data) else _matlab_folds(data)
        folds = np.asarray(values, dtype=np.float64).ravel()
    except Exception as error:  # noqa: BLE001 - SciPy raises many types on bad bytes
        raise ImageError("damaged", f"damaged, or no variable cvind ({error})") from None
    if not np.isin(folds, range(1, _FOLD_COUNT + 1)).all() or not folds.size:
        raise ImageError("damaged", f"cvind is not a list of folds from 1 to {_FOLD_COUNT}")
    return folds.astype(np.int64)


def _is_hdf5(data: bytes) -> bool:
    return _HDF5 in (data[:8], data[512:520])


def _hdf5_folds(data: bytes) -> NDArray[Any]:
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        return np.asarray(file["cvind"][()])


def _matlab_folds(data: bytes) -> NDArray[Any]:
    from scipy.io import loadmat

    return np.asarray(loadmat(io.BytesIO(data), variable_names=["cvind"])["cvind"])
