"""Hashes of the images a bundle was trained and chosen on, to know them again in a test set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fftpack import dct

from btray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Hashes = NDArray[np.int64]

_SIDE: Final = 32
"""Side at which imagehash looks at an image, in pixels."""
_KEPT: Final = 8
"""Frequencies that imagehash keeps on each axis."""
_BITS: Final = (16, 48)
"""Fewest and most of the 64 bits that are set in the hash of an image that shows something.

It is 32, the bits being above the median, unless many frequencies are 0; of a blank image, 0 or 1.
"""
_TURNS: Final = np.array(
    [
        np.outer(down, across)
        for down in (np.ones(_KEPT), (-1.0) ** np.arange(_KEPT))
        for across in (np.ones(_KEPT), (-1.0) ** np.arange(_KEPT))
    ]
)
"""What the frequencies of an image are multiplied by when it is mirrored, across or down."""


@dataclass(frozen=True)
class Twins:
    """Which rows of a test set a bundle knows."""

    exact: NDArray[np.bool_]
    """The same grey pixels [rows], however they were encoded."""
    near: NDArray[np.bool_]
    """Alike [rows]: an equal perceptual hash, mirrored and turned by quarters too."""

    @property
    def rows(self) -> NDArray[np.bool_]:
        """Return the rows with a twin of either kind [rows]."""
        return self.exact | self.near


@dataclass(frozen=True, eq=False)
class Seen:
    """Two sets of hashes, each sorted for itself; 16 bytes an image.

    Nothing here tells which hash belongs to which other, to which label, split, file or patient.
    Who has an image can find out that it, or one much like it, was trained on: this is what the
    hashes are for. A perceptual hash says of the 64 lowest frequencies of an image (8 x 8, the
    mean included) whether they are above their median: at best a blurred sketch, like those of
    other heads seen the same way, and far from an image. The other hash says nothing without the
    very pixels.

    Why perceptual hashes must be equal, in the slices of the Kaggle set: heads are so alike that
    hashes 2 bits apart (there is no 1) join 4 % of the test rows to training rows, those of
    other classes among them, and 4 bits apart 20 %. Equal hashes join none of different classes,
    and find three of four mirrored copies, nine of ten re-encoded ones, one of seven
    cropped by 1 % and none by 5 %: a leak of a few images is noticed, not each of them.
    """

    pixels: Hashes
    """The first 8 bytes of the SHA-256 of the grey pixels [images], ascending, none twice."""
    phashes: Hashes
    """Perceptual hashes [images], ascending, none twice; those of blank images left out."""

    @classmethod
    def of(cls, pixel_sha256: Sequence[str], phash: Sequence[str]) -> Self:
        """Keep the hashes of images, in hexadecimal as a data set has them [images]."""
        phashes = np.unique(_numbers(phash))
        return cls(np.unique(_numbers(pixel_sha256)), phashes[_tells(phashes)])

    @classmethod
    def from_tensors(cls, tensors: "Mapping[str, Tensor]") -> Self:
        """Take what `tensors` gave.

        Raises:
            UserError: tensors of other names, types or shapes, or unsorted.

        """
        if set(tensors) != {"pixels", "phashes"}:
            raise _damaged(f"has {', '.join(sorted(tensors)) or 'nothing'}")
        found = {name: tensor.numpy() for name, tensor in tensors.items()}
        for name, hashes in found.items():
            if hashes.dtype != np.int64 or hashes.ndim != 1 or (hashes[1:] <= hashes[:-1]).any():
                raise _damaged(f"{name} is no ascending list of int64")
        return cls(**found)

    def tensors(self) -> "dict[str, Tensor]":
        """Return the hashes as int64 tensors `pixels` and `phashes`."""
        import torch  # not for those who only hash

        return {
            "pixels": torch.from_numpy(self.pixels),
            "phashes": torch.from_numpy(self.phashes),
        }

    def twins(self, pixel_sha256: Sequence[str], phash_variants: Hashes) -> Twins:
        """Look up a test set by its pixel hashes [rows] and its `phash_variants` [rows, 8]."""
        if phash_variants.shape != (len(pixel_sha256), len(_TURNS) * 2):
            raise ValueError(f"{len(pixel_sha256)} rows, but variants {phash_variants.shape}")
        return Twins(
            exact=np.isin(_numbers(pixel_sha256), self.pixels),
            near=np.asarray(np.isin(phash_variants, self.phashes).any(axis=1)),
        )


def phash(image: NDArray[np.uint8]) -> str:
    """Return the perceptual hash of grey pixels [height, width]: 16 hexadecimal digits."""
    return str(imagehash.phash(Image.fromarray(image)))


def phash_variants(image: NDArray[np.uint8]) -> Hashes:
    """Return the perceptual hashes [8] of grey pixels [height, width], mirrored and turned.

    The first is `phash`. Next are the image mirrored left to right, upside down, and both; then
    the same of its transpose. All come from one cosine transform, which mirroring changes in
    signs alone: eight times faster than hashing eight images.
    """
    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = dct(dct(np.asarray(small), axis=0), axis=1)[:_KEPT, :_KEPT]
    frequencies = np.concatenate([low * _TURNS, low.T * _TURNS]).reshape(2 * len(_TURNS), -1)
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">i8")[:, 0].astype(np.int64)


def _tells(phashes: Hashes) -> NDArray[np.bool_]:
    bits = np.bitwise_count(phashes.view(np.uint64))
    return np.asarray((bits >= _BITS[0]) & (bits <= _BITS[1]))


def _numbers(hexadecimal: Sequence[str]) -> Hashes:
    """Return the first 64 bits of each hash."""
    digits = "".join(text[:16] for text in hexadecimal)
    return np.frombuffer(bytes.fromhex(digits), dtype=">i8").astype(np.int64)


def _damaged(what: str) -> UserError:
    return UserError(f"hashes of the training images: {what}; export the bundle again")
