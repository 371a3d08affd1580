"""Trees of DICOM files, without a trace of who the patients are.

What identifies a patient is read to match labels and to group slices, and only keyed hashes
of it are kept. A file's path often carries a name, so it is not kept either: a row is called
`study/series/instance` in pseudonyms, and the quarantine list names a file by the SHA-256 of
its bytes, which `sha256sum` on the machine with the files turns back into a path.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from btray.core.dicom import Header, Identifiers, is_dicom, read_frames, read_header
from btray.core.images import ImageError, encode_png
from btray.core.labels import CLASS_NAMES
from btray.core.pseudonyms import Pseudonyms
from btray.data.sources.base import Item, Listing, Record, Rejected, checked_listing
from btray.data.sources.imagefolder import folder_labels
from btray.data.sources.labels import Known, Labels, read_labels
from btray.data.sources.tree import File, Tree, shown

_MAGIC_BYTES: Final = 132
_NAME_DIGITS: Final = 16
_MOST_FRAMES: Final = 10_000
"""More are not believed before they are read."""
_FILES_AT_ONCE: Final = 8
"""Read ahead in threads; so many files stand in memory at a time."""


@dataclass(frozen=True)
class DicomTree:
    """A tree of DICOM files of any names, in a folder or a bucket."""

    root: str
    """The folder, absolute, or a URI."""
    pseudonyms: Pseudonyms = field(repr=False)
    labels: str | None = None
    """Table of labels; without one, class folders at the top label the files."""
    any_modality: bool = False
    """Whether slices that are not MR are taken."""
    class_names: tuple[str, ...] = CLASS_NAMES
    """The classes a label may name."""
    kind: str = "dicom"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the key here: workers only `read`, for which it is not needed."""
        return {**vars(self), "pseudonyms": None}

    @property
    def place(self) -> str:
        """The folder."""
        return shown(self.root)

    def listing(self) -> Listing:
        """Read all headers; a file that is no usable slice, or has no label, is refused.

        Raises:
            UserError: no such folder, an unusable table of labels, or nothing to import.

        """
        labels = read_labels(self.labels, self.class_names) if self.labels else None
        walked = Tree(self.root).walk()
        # What stands here may be a patient's name: it is not repeated.
        rejected = [
            Rejected(f"entry-{number:06d}", entry.code, entry.reason)
            for number, entry in enumerate(walked.rejected, 1)
        ]
        items, taken = [], Counter[str]()
        for number, seen in enumerate(self._look(walked.files), 1):
            try:
                items.append(self._item(seen, labels, taken))
            except ImageError as error:
                called = f"sha256:{seen.content}" if seen.content else f"file-{number:06d}"
                rejected.append(Rejected(called, error.code, str(error)))
        return checked_listing(self.place, items, rejected, _notes(labels, rejected))

    def fingerprint(self, items: tuple[Item, ...]) -> str:
        """Hash paths, labels, contents and who belongs together; the key has no part in it."""
        digest = hashlib.sha256(f"{self.any_modality}\n".encode())
        owners: dict[str | None, str | None] = {}
        for item in sorted(items, key=lambda item: item.path or ""):
            owner = owners.setdefault(item.patient_id, item.path)
            fields = (item.path, item.label, item.split, item.content, owner)
            digest.update("\0".join(map(str, fields)).encode() + b"\n")
        return digest.hexdigest()

    def read(self, item: Item) -> Iterator[Record]:
        """Yield every frame of a file as an 8-bit grey PNG; raises OSError and ImageError."""
        if item.label is None or item.path is None:
            raise ValueError("a DICOM item has a label and a path")
        data = Tree(self.root).read(item.path)
        acquisition = asdict(read_header(data, self.any_modality).acquisition)
        frames = read_frames(data)
        digits = max(3, len(str(len(frames))))
        for number, pixels in enumerate(frames, 1):
            yield Record(
                name=f"{item.name}#frame-{number:0{digits}d}" if len(frames) > 1 else item.name,
                data=encode_png(pixels),
                label=item.label,
                split=item.split,
                patient_id=item.patient_id,
                study_id=item.study_id,
                series_id=item.series_id,
                **acquisition,
            )

    def _look(self, files: tuple[File, ...]) -> Iterator["_Seen"]:
        """Yield what stands in every file, read ahead in threads."""
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            for start in range(0, len(files), _FILES_AT_ONCE):
                yield from pool.map(self._open, files[start : start + _FILES_AT_ONCE])

    def _open(self, file: File) -> "_Seen":
        try:
            data = Tree(self.root).read(file.name)
        except ImageError as error:
            return _Seen(file.name, Tree(self.root).hash(file.name), error)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or type(error).__name__}"
            return _Seen(file.name, None, ImageError("unreadable", reason))
        return _Seen(file.name, hashlib.sha256(data).hexdigest(), data)

    def _item(self, seen: "_Seen", labels: Labels | None, taken: Counter[str]) -> Item:
        header = seen.header(self.any_modality)
        known = self._known(seen.path, header.identifiers, labels)
        if known is None:
            where = "in the table of labels" if labels else "and stands in no class folder"
            raise ImageError("no_label", f"has no label {where}")
        return self._named(seen, header, known, taken)

    def _known(self, path: str, found: Identifiers, labels: Labels | None) -> Known | None:
        if labels is not None:
            return labels.find({**vars(found), "path": path})
        split, label = folder_labels(path, self.class_names)
        return None if label is None else Known(label, split)

    def _named(self, seen: "_Seen", header: Header, known: Known, taken: Counter[str]) -> Item:
        """Put pseudonyms for all identifiers, and make of them a name that is there once."""
        found, pseudonym = header.identifiers, self.pseudonyms
        unknown = f"content {seen.content}"
        study = pseudonym("study", found.study_uid or unknown)
        series = pseudonym("series", found.series_uid or unknown)
        instance = pseudonym("instance", found.sop_uid or unknown)
        name = "/".join(part[:_NAME_DIGITS] for part in (study, series, instance))
        taken[name] += 1
        patient = known.patient_id or found.patient_id
        return Item(
            name=name if taken[name] == 1 else f"{name}-{taken[name]}",
            label=known.label,
            split=known.split,
            # A study has one patient: it keeps the slices of a nameless one together.
            patient_id=pseudonym("patient", patient) if patient else study,
            images=min(header.frames, _MOST_FRAMES),
            path=seen.path,
            content=seen.content,
            study_id=study,
            series_id=series,
        )


@dataclass(frozen=True)
class _Seen:
    """A file that was looked at: its bytes, or why there are none."""

    path: str = field(repr=False)
    content: str | None
    """SHA-256; None if it cannot be read."""
    data: bytes | ImageError = field(repr=False)

    def header(self, any_modality: bool) -> Header:
        """Return what the file says; raises ImageError if it is no usable slice."""
        if isinstance(self.data, ImageError):
            raise self.data
        if not is_dicom(self.data[:_MAGIC_BYTES]):
            raise ImageError("not_dicom", "not a DICOM file")
        return read_header(self.data, any_modality)


def _notes(labels: Labels | None, rejected: list[Rejected]) -> tuple[str, ...]:
    without = sum(entry.code == "no_label" for entry in rejected)
    notes = (f"{without:,} slices have no label and are left out",) if without else ()
    return (*notes, *(labels.notes() if labels else ()))
