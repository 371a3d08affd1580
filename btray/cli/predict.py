"""`btray predict`."""

import glob
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from btray.cli.bundles import open_fast
from btray.cli.progress import counting
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.core.answers import Engine
    from btray.core.images import ImageError

BATCH: Final = 32
"""Images in one forward pass."""

Row = dict[str, Any]


class Format(StrEnum):
    """How answers are printed."""

    table = "table"
    jsonl = "jsonl"


def predict(
    paths: Annotated[list[str], typer.Argument(help="Images, folders, globs.", metavar="PATH…")],
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Bundle, run, ONNX bundle or models:/NAME@ALIAS; by default the shipped "
            "reference.",
            metavar="B",
        ),
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="Table or JSON Lines.")] = Format.table,
) -> None:
    """Classify images with a bundle, on this machine and without Ray.

    An image that cannot be used is a row with the reason, and the exit code is then 1.
    """
    from btray.core.reference import reference_bundle

    bundle = bundle or reference_bundle()
    files = find_images(paths)
    rows = answer(open_fast(bundle, threads=_cores()), files)
    failed = _print_lines(rows) if output is Format.jsonl else _print_table(rows, len(files))
    if failed:
        raise typer.Exit(1)


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Return the files that paths, folders (searched for images) and globs name, once each.

    Raises:
        UserError: something that is not there, or nothing found.

    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        matches = _matches(argument)
        if not matches:
            raise UserError(f"{argument}: no such file or folder, and no match as a pattern")
        images = [image for match in matches for image in _images_in(match)]
        if not images:
            raise UserError(f"{argument}: no image in it")
        for image in images:
            found.setdefault(image.absolute(), image)
    return list(found.values())


def _matches(argument: str) -> list[Path]:
    """Return what an argument names as it is, else what it matches as a pattern."""
    pattern = os.path.expanduser(argument)  # noqa: PTH111 - leaves an unknown user's as it is
    if os.path.lexists(pattern):
        return [Path(pattern)]
    return sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - from any root


def _images_in(path: Path) -> list[Path]:
    from btray.core.images import SUFFIXES

    if not path.is_dir():
        return [path]
    inside = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in inside if file.is_file())


def _cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def answer(engine: "Engine", files: Sequence[Path]) -> Iterator[Row]:
    """Yield a JSON row a file, in order."""
    from btray.core.answers import answer_row

    for start in range(0, len(files), BATCH):
        portion = files[start : start + BATCH]
        contents = [read_file(path) for path in portion]
        readable = [data for data in contents if isinstance(data, bytes)]
        answers = iter(engine.predict(readable))
        for path, data in zip(portion, contents, strict=True):
            result = next(answers) if isinstance(data, bytes) else data
            yield {"path": str(path), **answer_row(result, engine.card.name, engine.version)}


def read_file(path: Path) -> "bytes | ImageError":
    """Read an image file, or say why it cannot be used."""
    from btray.core.files import reason
    from btray.core.images import MAX_BYTES, ImageError

    try:
        known = path.stat()
        if not stat.S_ISREG(known.st_mode):
            return ImageError("not_a_file", "not a regular file")
        if known.st_size > MAX_BYTES:
            return ImageError("too_large", f"more bytes than the limit of {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        return ImageError("unreadable", f"cannot be read: {reason(error)}")


def _print_lines(rows: Iterator[Row]) -> int:
    """Print rows as they come; return how many are errors."""
    failed = 0
    for row in rows:
        sys.stdout.write(json.dumps(row, allow_nan=False) + "\n")
        sys.stdout.flush()
        failed += "error" in row
    return failed


def _print_table(rows: Iterator[Row], total: int) -> int:
    path = Column("path", overflow="fold")
    table = Table(path, "class", "probability", "prediction set", "remark")
    failed = 0
    with counting("classifying") as report:
        for done, row in enumerate(rows, start=1):
            table.add_row(*map(escape, _cells(row)))
            failed += "error" in row
            report(done, total)
    console = Console(highlight=False, emoji=False)
    console.print(table)
    console.print("Research use only: not a medical device.")
    return failed


def _cells(row: Row) -> tuple[str, ...]:
    if "error" in row:
        return (row["path"], "", "", "", row["error"]["message"])
    remark = "abstain" if row["abstain"] else ""
    if row["out_of_distribution"]:
        remark = "abstain: unlike the images it was trained on"
    probability = f"{row['probabilities'][row['class']]:.4f}"
    return (row["path"], row["class"], probability, ", ".join(row["prediction_set"]), remark)
