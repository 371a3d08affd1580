"""Options of `btray data import` that say what the source is and how it is read."""

from typing import Annotated, Literal

import typer

from btray.core.labels import CLASS_NAMES
from btray.errors import UserError

Format = Annotated[
    Literal["auto", "imagefolder", "figshare", "dicom", "nifti", "manifest"],
    typer.Option("--format", help="Kind of source."),
]
Classes = Annotated[
    str | None,
    typer.Option(help=f"Your own classes, a,b,c; else {','.join(CLASS_NAMES)}."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="CSV of a DICOM or NIfTI source: label and one of path, patient_id, study_uid, "
        "series_uid, sop_uid."
    ),
]
KeyFile = Annotated[
    str | None,
    typer.Option(
        help="File with the secret key of the pseudonyms; else BTRAY_PSEUDONYM_KEY, else a key "
        "that is thrown away."
    ),
]
Modality = Annotated[
    Literal["mr", "any"], typer.Option(help="DICOM slices to take: MR alone, or all.")
]
Axis = Annotated[
    Literal["axial", "coronal", "sagittal"],
    typer.Option(help="Plane of the slices of NIfTI volumes."),
]
Slices = Annotated[
    str | None,
    typer.Option(
        help="Slices of a NIfTI volume, FROM:TO (TO not included), as numbers (40:110) or as "
        "fractions (0.3:0.7), from foot, back or left.",
        metavar="FROM:TO",
    ),
]
Every = Annotated[int, typer.Option(help="Take every N-th slice of a NIfTI volume.", min=1)]
Exclude = Annotated[
    bool,
    typer.Option(
        "--exclude-from-train-what-is-in-test",
        help="Exclude a patient's train slices, rather than fail, when the source has the "
        "patient in its test split too.",
    ),
]


def class_names(text: str | None) -> tuple[str, ...]:
    """Read class names, a,b,c; without any, the four of btray.

    Raises:
        UserError: fewer than two, an empty one, or two that are spelt alike.

    """
    if text is None:
        return CLASS_NAMES
    names = tuple(name.strip() for name in text.split(","))
    alike = {"".join(c for c in name.lower() if c.isalnum()) for name in names}
    if len(names) < 2 or len(alike) < len(names) or "" in alike:
        raise UserError(f"--classes {text}: give two or more different names, a,b,c")
    return names
