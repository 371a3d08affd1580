"""Which source a folder, bucket, table or archive is, and opening it as that."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Final, Literal

import pyarrow.fs
from pydantic import Field

from btray.config import Section
from btray.core import files
from btray.core.dicom import is_dicom
from btray.core.images import SUFFIXES as IMAGE_SUFFIXES
from btray.core.labels import CLASS_NAMES
from btray.core.pseudonyms import Pseudonyms
from btray.data.sources import archive, nifti
from btray.data.sources.base import Source
from btray.data.sources.dicom import DicomTree
from btray.data.sources.figshare import Figshare
from btray.data.sources.imagefolder import ImageFolder
from btray.data.sources.manifest import ManifestTable
from btray.data.sources.nifti import NiftiTree, SliceRange
from btray.data.sources.tree import Tree, Walked, shown
from btray.errors import UserError

Format = Literal["imagefolder", "figshare", "dicom", "nifti", "manifest"]
_TABLES: Final = (".csv", ".parquet")
_DICOM_SUFFIXES: Final = (".dcm", ".dicom", ".ima")
_LOOKED_INTO: Final = 32
"""Files of unknown names whose first bytes are looked at."""
_MAGIC_BYTES: Final = 132


class SourceOptions(Section):
    """How a source is read."""

    format: Literal["auto"] | Format = "auto"
    """Kind of source; `auto` tells it by the files' names and first bytes."""
    class_names: tuple[str, ...] = CLASS_NAMES
    """Classes in index order."""
    labels: str | None = None
    """Table of labels of a DICOM or NIfTI source."""
    pseudonym_key_file: str | None = None
    """File with the key of the pseudonyms."""
    modality: Literal["mr", "any"] = "mr"
    """Which DICOM slices are taken."""
    axis: nifti.Axis = "axial"
    """Plane of the slices of NIfTI volumes."""
    slices: str | None = None
    """Range of slices of a NIfTI volume, FROM:TO."""
    every: int = Field(default=1, ge=1)
    """Every how many slices of a NIfTI volume one is taken."""


@contextmanager
def open_source(uri: str, options: SourceOptions) -> Iterator[Source]:
    """Give the source at a path or URI; an archive is unpacked for as long as it is open.

    Raises:
        UserError: nothing there, several kinds of source, an option that is missing or
            belongs to another kind, or an archive that cannot be unpacked.

    """
    place = _place(uri)
    if archive.is_archive(place):
        with archive.unpacked(place, options.class_names) as folder:
            yield _source(folder, options)
    else:
        yield _source(place, options)


def _place(uri: str) -> str:
    """Return an absolute path, or a URI that is not one of this machine's files."""
    filesystem, path = files.resolve(uri)
    return path if isinstance(filesystem, pyarrow.fs.LocalFileSystem) else uri


def _source(place: str, options: SourceOptions) -> Source:
    kind = options.format if options.format != "auto" else detect(place)
    _check_options(kind, options)
    key, names = Pseudonyms.load(options.pseudonym_key_file), options.class_names
    labels = None if options.labels is None else files.absolute(options.labels)
    match kind:
        case "figshare":
            return Figshare(place, key, names)
        case "dicom":
            return DicomTree(place, key, labels, options.modality == "any", names)
        case "nifti":
            if labels is None:
                raise UserError(
                    f"{shown(place)}: NIfTI volumes need --labels FILE.csv (path,label)"
                )
            slices = SliceRange.parse(options.slices, options.every)
            return NiftiTree(place, labels, key, options.axis, slices, names)
        case "manifest":
            return ManifestTable(place, key, names)
        case "imagefolder":
            return ImageFolder(place, names)


def _check_options(kind: Format, options: SourceOptions) -> None:
    """Raise UserError for an option that this kind of source would pass over in silence."""
    given = {
        "--labels": (options.labels is not None, ("dicom", "nifti")),
        "--modality": (options.modality != "mr", ("dicom",)),
        "--axis": (options.axis != "axial", ("nifti",)),
        "--slices": (options.slices is not None, ("nifti",)),
        "--every": (options.every != 1, ("nifti",)),
    }
    for name, (is_given, kinds) in given.items():
        if is_given and kind not in kinds:
            raise UserError(f"{name} is for {' and '.join(kinds)} sources; this one is {kind}")


def detect(place: str) -> Format:
    """Return which kind of source is at an absolute path or URI.

    Raises:
        UserError: nothing there, or files of several kinds.

    """
    if place.partition("?")[0].lower().endswith(_TABLES):
        return "manifest"
    tree = Tree(place)
    found = sorted(set(_kinds(tree, tree.walk())))
    if len(found) > 1:
        raise UserError(
            f"{shown(place)}: holds files of several kinds ({', '.join(found)}); "
            "say which with --format"
        )
    return found[0] if found else "imagefolder"


def _kinds(tree: Tree, walked: Walked) -> Iterator[Format]:
    looked_into = 0
    for name in (file.name.lower() for file in walked.files):
        suffix = PurePosixPath(name).suffix
        if suffix == ".mat":
            yield "figshare"
        elif name.endswith(nifti.SUFFIXES):
            yield "nifti"
        elif suffix in _DICOM_SUFFIXES:
            yield "dicom"
        elif suffix in IMAGE_SUFFIXES:
            yield "imagefolder"
    for file in walked.files:
        known = (*_DICOM_SUFFIXES, *IMAGE_SUFFIXES, *nifti.SUFFIXES, ".mat", *_TABLES)
        if looked_into < _LOOKED_INTO and not file.name.lower().endswith(known):
            looked_into += 1
            if _is_dicom(tree, file.name):
                yield "dicom"
                return


def _is_dicom(tree: Tree, name: str) -> bool:
    try:
        return is_dicom(tree.head(name, _MAGIC_BYTES))
    except OSError:
        return False  # the listing meets it again
