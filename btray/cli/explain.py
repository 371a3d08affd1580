"""`btray explain`."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from btray.cli.bundles import open_bundle
from btray.cli.predict import find_images, read_file
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.core.explain import Explanation
    from btray.core.predictor import Predictor

SHIPPED = "reference"


def explain(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, globs; before them a bundle, `reference` for the shipped one.",
            metavar="[BUNDLE] PATH…",
        ),
    ],
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Bundle, run or models:/NAME@ALIAS; by default the shipped reference.",
            metavar="B",
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Class to explain; by default the answer.", metavar="NAME"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="PNG to write, or a folder; by default NAME-gradcam.png here."),
    ] = None,
) -> None:
    """Show where in an image a class is seen: Grad-CAM laid over the prepared slice."""
    from btray.core.reference import reference_bundle

    uri, paths = _split(arguments, bundle)
    files = find_images(paths)
    pictures = _pictures(files, out)
    from btray.core.explain import overlay
    from btray.core.pages import NOTICE
    from btray.core.predictor import Predictor

    predictor = Predictor(open_bundle(reference_bundle() if uri == SHIPPED else uri))
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    for file, picture in zip(files, pictures, strict=True):
        explanation = _explained(predictor, file, class_name)
        _write(picture, overlay(explanation))
        for line in _lines(file, explanation, picture):
            console.print(line)
    console.print(NOTICE)


def _split(arguments: Sequence[str], bundle: str | None) -> tuple[str, Sequence[str]]:
    """Tell the bundle from the images; of several arguments, the first is one if no image."""
    if bundle is None and len(arguments) > 1 and not _is_image(arguments[0]):
        return arguments[0], arguments[1:]
    return bundle or SHIPPED, arguments


def _is_image(argument: str) -> bool:
    from btray.core.images import SUFFIXES

    is_file = os.path.isfile(argument)  # noqa: PTH113 - no error for what cannot be a name
    return is_file or argument.lower().endswith(SUFFIXES)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - no error for what cannot be a name


def _pictures(files: Sequence[Path], out: Path | None) -> list[Path]:
    """Return where each image's picture goes.

    Raises:
        UserError: no such folder, no place for several, or one that is taken.

    """
    if out is None or _is_folder(out):
        pictures = [(out or Path()) / f"{file.stem}-gradcam.png" for file in files]
    elif len(files) > 1:
        raise UserError(f"{out}: not a folder; --out must be one for several images")
    elif out.suffix.lower() != ".png":
        raise UserError(f"{out}: neither a folder nor a name in .png; the picture is a PNG")
    else:
        pictures = [out]
    inputs = {file.resolve() for file in files}
    for picture, times in Counter(pictures).items():
        if times > 1:
            raise UserError(f"{picture}: of several images; explain them one by one with --out")
        if picture.resolve() in inputs:
            raise UserError(f"{picture}: would overwrite an image; give --out another name")
        if not _is_folder(picture.parent):
            raise UserError(f"{picture.parent}: no such folder; make it, or give --out another")
    return pictures


def _explained(predictor: "Predictor", file: Path, class_name: str | None) -> "Explanation":
    from btray.core.explain import explain
    from btray.core.images import ImageError

    data = read_file(file)
    try:
        if isinstance(data, ImageError):
            raise data
        return explain(predictor, data, class_name)
    except ImageError as error:
        raise UserError(f"{file}: {error}") from None


def _write(picture: Path, data: bytes) -> None:
    from btray.core.files import reason

    try:
        picture.write_bytes(data)
    except OSError as error:
        raise UserError(f"{picture}: cannot be written: {reason(error)}") from None


def _lines(file: Path, explanation: "Explanation", picture: Path) -> Iterator[str]:
    answer, chosen = explanation.prediction, explanation.class_name
    yield f"{file}: {answer.class_name}, probability {answer.probabilities[answer.class_name]:.4f}"
    if answer.out_of_distribution:
        yield "  abstain: unlike the images it was trained on"
    elif answer.abstain:
        yield "  abstain: no one class is sure enough"
    if chosen != answer.class_name:
        yield f"  explained: {chosen}, probability {explanation.probability:.4f}"
    if explanation.empty:
        yield f"  nothing in it speaks for {chosen}: the map is empty"
    yield f"  picture: {picture}"
