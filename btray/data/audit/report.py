"""The audit as `audit.json` and as one page with pictures."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image

from btray.core.files import reason
from btray.core.images import decode
from btray.core.pages import data_uri, render
from btray.data.audit.audit import Audit
from btray.data.audit.twins import Twins
from btray.data.dataset import Dataset
from btray.errors import UserError

_GROUPS: Final = 12
"""Most sets of twins shown in a section."""
_TILES: Final = 8
"""Most images shown of a set."""
_SINGLES: Final = 24
"""Most single images shown in a section."""
_PIXELS: Final = 132
"""Side of a picture on the page."""
_QUALITY: Final = 80


@dataclass(frozen=True)
class Section:
    """A part of the page: what was looked for, what was found, and pictures of it."""

    title: str
    status: str
    """`good`, `look` or `bad`."""
    verdict: str
    """What was found, in a line."""
    explanation: str
    """What it means."""
    groups: list[list[tuple[str, int]]] = field(default_factory=list)
    """Captions and row numbers of images shown side by side."""
    tables: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    """Titles and cells, the header first."""
    left_out: int = 0
    """Groups found and not shown."""


def write_audit(audit: Audit, dataset: Dataset, directory: Path) -> dict[str, Any]:
    """Write `audit.json` and `audit.html` to a folder; return what the JSON holds.

    Raises:
        UserError: the folder cannot be written.

    """
    found = audit.to_json()
    sections = build(audit)
    shown = sorted({row for s in sections for group in s.groups for _, row in group})
    page = render(
        "btray.data.audit",
        "audit.html.j2",
        title=f"Audit of {found['rows']:,} images",
        facts=[
            (
                "data set",
                f"{dataset.manifest.source}, content hash {dataset.manifest.content_hash}",
            ),
            ("made by", f"btray {dataset.manifest.btray_version}"),
            ("classes", ", ".join(dataset.manifest.class_names)),
        ],
        sections=sections,
        pictures=_pictures(audit, dataset, shown),
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        (directory / "audit.json").write_text(text, encoding="utf-8")
        (directory / "audit.html").write_bytes(page)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {reason(error)}") from None
    return found


def build(audit: Audit) -> list[Section]:
    """Return the page's sections, what spoils scores first."""
    return [
        _leakage(audit),
        _official(audit),
        _conflicts(audit),
        _shortcut(audit),
        _label_errors(audit),
        _twins(audit, "Exact duplicates", audit.exact, "pixel-identical"),
        _twins(audit, "Near duplicates", audit.near, "of the same slice"),
        _faults(audit),
        _balance(audit),
    ]


def _leakage(audit: Audit) -> Section:
    near, patients = audit.leaks["near"], audit.patient_leaks["in_use"]
    clean = not near.groups and not patients
    return Section(
        "Leakage between the splits in use",
        "good" if clean else "bad",
        _leaks(audit.leaks, patients),
        "Images of one slice, or of one patient, in more than one of train, validation and test. "
        "A network remembers them, and its test score is too good. "
        "`btray data split` draws splits without.",
        **_shown(audit, near, "split"),
    )


def _official(audit: Audit) -> Section:
    known = any(audit.rows["official_split"])
    near, patients = audit.official_leaks["near"], audit.patient_leaks["official"]
    verdict = _leaks(audit.official_leaks, patients) if known else "the source has none"
    return Section(
        "Leakage between the source's own splits",
        "look" if near.groups or patients else "good",
        verdict,
        "What published scores on these splits have learnt by heart. btray has already excluded "
        "the train images whose twins stand in test.",
        **_shown(audit, near, "official_split"),
    )


def _leaks(leaks: dict[str, Twins], patients: int) -> str:
    exact, near = leaks["exact"], leaks["near"]
    return (
        f"{len(exact.groups):,} sets of identical images and {len(near.groups):,} of near "
        f"duplicates ({near.images:,} images) stand in several splits, and {patients:,} patients do"
    )


def _conflicts(audit: Audit) -> Section:
    exact, near = audit.conflicts["exact"], audit.conflicts["near"]
    return Section(
        "One slice, two labels",
        "bad" if exact.groups else "look" if near.groups else "good",
        f"{len(exact.groups):,} sets of identical images and {len(near.groups):,} of near "
        "duplicates have more than one label",
        "At least one of the labels is wrong, or the slices are neighbours at a tumour's edge.",
        **_shown(audit, near, "label"),
    )


def _shortcut(audit: Audit) -> Section:
    found = audit.shortcut
    rows = [["feature", "accuracy lost without it"]]
    rows += [[name, f"{loss:.4f}"] for name, loss in found.features.items() if loss > 0][:12]
    verdict = "too few groups to tell"
    if found.accuracy is not None:
        verdict = (
            f"{found.verdict}: style alone gets {found.accuracy:.1%} of the labels right; always "
            f"saying the commonest gets {found.chance:.1%}"
        )
    return Section(
        "Shortcuts",
        {"strong": "bad", "weak": "good"}.get(found.verdict, "look"),
        verdict,
        "Labels predicted with the head masked out: from size, colour, file, frame, margins and "
        "background, cross-validated by group. What gives a label away here, a network can learn "
        "instead of the tumour, and it will not hold elsewhere. image.crop: head removes margins; "
        "data from the same scanners for every class is the cure.",
        tables=[("what gives it away", rows)] if found.features else [],
    )


def _label_errors(audit: Audit) -> Section:
    title, found = "Labels that may be wrong", audit.label_errors
    if found is None:
        why = "too few groups" if audit.agreement is None else "its labels look too much alike"
        return Section(title, "look", f"not measured: {why} for the simple model used here", "")
    tiles = [
        (f"is {audit.rows['label'][e.row]}, looks {e.suggested} ({e.confidence:.0%})", e.row)
        for e in found[:_SINGLES]
    ]
    return Section(
        title,
        "look" if found else "good",
        f"{len(found):,} images, the most suspicious first",
        "Confident learning from cross-validated predictions of a simple model, which agrees with "
        f"{audit.agreement:.0%} of the labels and errs too: candidates for a radiologist's look, "
        "not verdicts.",
        groups=[tiles] if tiles else [],
        left_out=max(0, len(found) - _SINGLES),
    )


def _twins(audit: Audit, title: str, twins: Twins, what: str) -> Section:
    return Section(
        title,
        "look" if twins.groups else "good",
        f"{len(twins.groups):,} sets of images {what}, {twins.images:,} images; the largest has "
        f"{max(map(len, twins.groups), default=0):,}",
        "Harmless within one split, but they count several times.",
        **_shown(audit, twins, "split"),
    )


def _faults(audit: Audit) -> Section:
    groups = [[(name, row) for row in rows[:_TILES]] for name, rows in audit.faults.items() if rows]
    verdict = ", ".join(f"{len(rows):,} {name}" for name, rows in audit.faults.items())
    return Section(
        "Images that are not as they should be",
        "look" if groups else "good",
        verdict,
        "Blank: no contrast. Inverted: a bright background. Oversized border: the head fills less "
        "than three tenths of the image.",
        groups=groups,
    )


def _balance(audit: Audit) -> Section:
    labels = sorted(set(audit.rows["label"]))
    tables = []
    for name, counts in audit.balance.items():
        rows = [[name, *labels, "all"]]
        for value, by_label in list(counts.items())[:12]:
            cells = [by_label.get(label, 0) for label in labels]
            rows.append([value, *(f"{n:,}" for n in (*cells, sum(cells)))])
        tables.append((f"by {name}" if name != "distinct" else "distinct groups, patients", rows))
    return Section("Balance", "good", "images by label", "", tables=tables)


def _shown(audit: Audit, twins: Twins, key: str) -> dict[str, Any]:
    """Return the sets to show, captioned by label, source and what `key` says."""
    groups = [
        [(_caption(audit, row, key), row) for row in _mixed(rows, audit.rows[key])]
        for rows in twins.groups[:_GROUPS]
    ]
    return {"groups": groups, "left_out": max(0, len(twins.groups) - _GROUPS)}


def _mixed(rows: list[int], keys: Sequence[str | None]) -> list[int]:
    """Choose rows to show so that every key is among them."""
    first = {keys[row]: row for row in reversed(rows)}
    chosen = [*first.values(), *(row for row in rows if row not in first.values())]
    return sorted(chosen[:_TILES])


def _caption(audit: Audit, row: int, key: str) -> str:
    label = audit.rows["label"][row]
    value = audit.rows[key][row]
    name = audit.rows["source"][row]
    return f"{name} ({label})" if key == "label" else f"{name} ({label}, {value or 'no split'})"


def _pictures(audit: Audit, dataset: Dataset, rows: Sequence[int]) -> dict[int, str]:
    names = [audit.rows["source"][row] for row in rows]
    images = dataset.images("source", names)
    return {row: _small(images[name]) for row, name in zip(rows, names, strict=True)}


def _small(data: bytes) -> str:
    image = Image.fromarray(decode(data))
    image.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return data_uri(buffer.getvalue(), "jpeg")
