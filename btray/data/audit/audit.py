"""The audit of a whole data set, its per-image work in Ray Data tasks."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import TaskPoolStrategy

from btray.cluster import connect, usable_cores
from btray.data.audit.features import SIDE, STYLE, examine_table
from btray.data.audit.label_errors import LabelError, find_label_errors, predict_labels
from btray.data.audit.shortcut import Shortcut, score_shortcut
from btray.data.audit.twins import Twins, torn_patients
from btray.data.dataset import EXCLUDED, ROWS, SPLITS, Dataset
from btray.data.decoding import check_rows, readable, tasks
from btray.data.duplicates import Measures, find_duplicates, people
from btray.data.head import FRAME, THUMBNAIL

Progress = Callable[[str, int, int], None]
"""Told the phase, and how many images of how many are done."""

_KNOWN: Final = [
    "source",
    "label",
    "split",
    "official_split",
    "patient_id",
    "study_id",
    "group_id",
    "pixel_sha256",
    "height",
    "width",
    "mode",
    "plane",
    "sequence",
    "vendor",
]
_LEAST_AGREEMENT: Final = 0.6
"""A model that agrees with fewer labels cannot tell which are wrong."""
_BALANCED: Final = ("plane", "sequence", "vendor", "mode", "size")


@dataclass(frozen=True)
class Audit:
    """What was found in the n rows of a data set; rows are called by their numbers."""

    rows: dict[str, list[Any]]
    """Columns of the data set [n]."""
    exact: Twins
    """Pixel-identical rows."""
    near: Twins
    """Rows that show the same slice, exact ones included."""
    leaks: dict[str, Twins]
    """`exact` and `near` twins in more than one of the splits in use."""
    official_leaks: dict[str, Twins]
    """The same in more than one of the source's own splits."""
    patient_leaks: dict[str, int]
    """Patients in more than one split `in_use`, and in more than one `official` one."""
    conflicts: dict[str, Twins]
    """`exact` and `near` twins with more than one label."""
    label_errors: list[LabelError] | None
    """Labels that are probably wrong, the surest first; None when they cannot be told."""
    agreement: float | None
    """Share of labels that the model agrees with by which they are told."""
    faults: dict[str, list[int]]
    """Rows that are blank, inverted or mostly border."""
    shortcut: Shortcut
    """How well style alone predicts the label."""
    balance: dict[str, dict[str, dict[str, int]]]
    """Rows by split, plane … and label."""

    def findings(self) -> dict[str, int | None]:
        """Return how much there is of each kind `--fail-on` can name; None: not measured."""
        return {
            "leakage": len(self.leaks["near"].groups) + self.patient_leaks["in_use"],
            "official-leakage": len(self.official_leaks["near"].groups)
            + self.patient_leaks["official"],
            "conflict": len(self.conflicts["exact"].groups),
            "near-conflict": len(self.conflicts["near"].groups),
            "exact-duplicates": len(self.exact.groups),
            "near-duplicates": len(self.near.groups),
            "label-errors": None if self.label_errors is None else len(self.label_errors),
            **{name.replace(" ", "-"): len(rows) for name, rows in self.faults.items()},
            "shortcut": None if self.shortcut.accuracy is None else int(self.shortcut.strong),
        }

    def to_json(self) -> dict[str, Any]:
        """Return all of it with rows called by their `source`."""
        return {
            "rows": len(self.rows["source"]),
            "exact_duplicates": self._counted(self.exact),
            "near_duplicates": self._counted(self.near),
            "leakage": self._leaks(self.leaks, self.patient_leaks["in_use"]),
            "official_leakage": self._leaks(self.official_leaks, self.patient_leaks["official"]),
            "label_conflicts": self._counted(self.conflicts["exact"]),
            "near_label_conflicts": self._counted(self.conflicts["near"]),
            "label_errors": [
                {
                    "source": self.rows["source"][error.row],
                    "label": self.rows["label"][error.row],
                    "suggested": error.suggested,
                    "confidence": error.confidence,
                }
                for error in self.label_errors or ()
            ],
            "label_agreement": self.agreement,
            "faults": {name: self._names(rows) for name, rows in self.faults.items()},
            "shortcut": {
                "accuracy": self.shortcut.accuracy,
                "balanced_accuracy": self.shortcut.balanced_accuracy,
                "chance": self.shortcut.chance,
                "verdict": self.shortcut.verdict,
                "features": self.shortcut.features,
            },
            "balance": self.balance,
            "findings": self.findings(),
        }

    def _counted(self, twins: Twins) -> dict[str, Any]:
        members = [self._names(rows) for rows in twins.groups]
        return {"groups": len(twins.groups), "images": twins.images, "members": members}

    def _leaks(self, leaks: dict[str, Twins], patients: int) -> dict[str, Any]:
        return {
            "exact_groups": len(leaks["exact"].groups),
            "near_groups": len(leaks["near"].groups),
            "patients": patients,
            "members": [self._names(rows) for rows in leaks["near"].groups],
        }

    def _names(self, rows: list[int]) -> list[str]:
        return [self.rows["source"][row] for row in rows]


def audit(dataset: Dataset, seed: int = 0, progress: Progress | None = None) -> Audit:
    """Examine every image of a data set, and then the set as a whole.

    Raises:
        UserError: rows missing or damaged.

    """
    report = progress or _silent
    connect()
    rows = dataset.table(_KNOWN).to_pydict()
    examined = _examined(dataset, report)
    if examined["source"].to_pylist() != rows["source"]:
        raise RuntimeError("the images came back in another order than their rows")
    report("twins", 0, 1)
    heads, frames = (
        _pictures(examined[name], side)
        for name, side in (("thumbnail", THUMBNAIL), ("frame", FRAME))
    )
    measures = Measures(rows["pixel_sha256"], heads, frames)
    style = np.array(examined["style"].to_pylist(), dtype=np.float32).reshape(-1, len(STYLE))
    labels, groups = rows["label"], rows["group_id"]
    persons = people(rows["patient_id"], rows["study_id"])
    found = find_duplicates(measures, persons)
    report("labels", 0, 1)
    errors, agreement = _label_errors(_pictures(examined["content"], SIDE), rows, seed)
    shortcut = score_shortcut(style, STYLE, labels, groups, seed)
    exact, near = Twins.of(found.exact), Twins.of(found.near)
    in_use = [None if split == EXCLUDED else split for split in rows["split"]]
    official = rows["official_split"]
    return Audit(
        rows=rows,
        exact=exact,
        near=near,
        leaks={"exact": exact.torn(in_use), "near": near.torn(in_use)},
        official_leaks={"exact": exact.torn(official), "near": near.torn(official)},
        patient_leaks={
            "in_use": torn_patients(persons, in_use),
            "official": torn_patients(persons, official),
        },
        conflicts={"exact": exact.torn(labels), "near": near.torn(labels)},
        label_errors=errors,
        agreement=agreement,
        faults=_faults(examined["faults"].to_pylist()),
        shortcut=shortcut,
        balance=_balance(rows),
    )


def _examined(dataset: Dataset, report: Progress) -> pa.Table:
    tables: list[pa.Table] = []
    done = 0
    report("images", 0, dataset.manifest.rows)
    with readable(dataset):
        found = ray.data.read_parquet(
            f"{dataset.path}/{ROWS}",
            filesystem=dataset.filesystem,
            columns=["image", "source"],
            override_num_blocks=tasks(dataset),
        ).map_batches(
            examine_table,
            batch_format="pyarrow",
            batch_size=None,
            compute=TaskPoolStrategy(size=min(usable_cores(), tasks(dataset))),
        )
        table: pa.Table
        for table in found.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(table)
            done += table.num_rows
            report("images", done, dataset.manifest.rows)
        check_rows(dataset, (*SPLITS, EXCLUDED), done)
    return pa.concat_tables(tables)


def _pictures(column: pa.ChunkedArray, side: int) -> NDArray[np.uint8]:
    pixels = np.frombuffer(b"".join(column.to_pylist()), dtype=np.uint8)
    return pixels.reshape(-1, side, side)


def _label_errors(
    pictures: NDArray[np.uint8], rows: dict[str, list[Any]], seed: int
) -> tuple[list[LabelError] | None, float | None]:
    predicted = predict_labels(pictures, rows["label"], rows["group_id"], seed)
    if predicted is None:
        return None, None
    probabilities, names = predicted
    said = [names[column] for column in probabilities.argmax(axis=1)]
    agreement = float(np.mean([a == b for a, b in zip(said, rows["label"], strict=True)]))
    if agreement < _LEAST_AGREEMENT:
        return None, agreement
    return find_label_errors(probabilities, rows["label"], names), agreement


def _faults(found: list[list[str]]) -> dict[str, list[int]]:
    named: dict[str, list[int]] = {"blank": [], "inverted": [], "oversized border": []}
    for row, names in enumerate(found):
        for name in names:
            named[name].append(row)
    return named


def _balance(rows: dict[str, list[Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Count rows by split, plane … and label, and patients and groups by label."""
    sizes = [f"{h} x {w}" for h, w in zip(rows["height"], rows["width"], strict=True)]
    columns = {**rows, "size": sizes}
    balance = {"split": _counts(columns["split"], rows["label"])}
    for name in _BALANCED:
        values = ["unknown" if value is None else value for value in columns[name]]
        if set(values) != {"unknown"}:
            balance[name] = _counts(values, rows["label"])
    balance["distinct"] = {
        what: dict(
            sorted(
                Counter(
                    label
                    for label, value in set(zip(rows["label"], rows[key], strict=True))
                    if value is not None
                ).items()
            )
        )
        for what, key in (("groups", "group_id"), ("patients", "patient_id"))
    }
    return balance


def _counts(values: list[str], labels: list[str]) -> dict[str, dict[str, int]]:
    """Return counts by value, the commonest first, and by label."""
    counts: dict[str, Counter[str]] = {}
    for value, label in zip(values, labels, strict=True):
        counts.setdefault(value, Counter())[label] += 1
    ordered: Iterator[tuple[str, Counter[str]]] = iter(
        sorted(counts.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    )
    return {value: dict(sorted(count.items())) for value, count in ordered}


def _silent(phase: str, done: int, total: int) -> None:
    del phase, done, total
