"""`btray models ensemble | distill | export`: bundles made of bundles."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from btray.cli.bundles import open_bundle
from btray.cli.config import ConfigFile, Overrides
from btray.cli.loading import loading
from btray.cli.progress import counting
from btray.cli.train import train
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.core.bundle import Bundle

Data = Annotated[str, typer.Option(help="Data set the bundles were trained on.")]


def register(models: typer.Typer) -> None:
    """Add the commands to the group `models`."""
    models.command()(ensemble)
    models.command()(distill)
    models.command()(export)


def ensemble(
    bundles: Annotated[list[str], typer.Argument(help="Bundles or runs.", metavar="BUNDLE…")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Weights of the bundles' votes, such as 2,1,1; by default equal."),
    ] = None,
) -> None:
    """Join bundles to one that answers with the mean of their probabilities."""
    votes = _votes(weights)
    from btray.cluster import connect
    from btray.data.dataset import Dataset

    dataset = Dataset.open(data)
    with loading("btray.evaluate.ensembles"):
        connect()
    from btray.core.bundle import load_bundle
    from btray.evaluate.ensembles import make_ensemble

    opened = [load_bundle(uri) for uri in bundles]
    with counting("answering held-out rows") as progress:
        made = make_ensemble(opened, votes, dataset, out, progress)
    _tell(made, out)


def distill(
    teacher: Annotated[str, typer.Argument(help="Bundle or run to learn from.", metavar="BUNDLE")],
    data: Data,
    config: ConfigFile = None,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
) -> None:
    """Train a network on a bundle's answers beside the labels: `btray train` with a teacher."""
    settings = [f"train.teacher={json.dumps(teacher)}", *(overrides or ())]
    train(config=config, overrides=settings, data=data, name=name)


def export(
    bundle: Annotated[
        str, typer.Argument(help="Bundle, run or models:/NAME@ALIAS.", metavar="BUNDLE")
    ],
    directory: Annotated[
        Path | None, typer.Argument(help="Folder of the new bundle.", metavar="[DIR]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The same folder, as an option.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set the bundle was trained on; for --half.")
    ] = None,
    half: Annotated[
        bool,
        typer.Option("--half", help="Store weights as float16, measured and calibrated anew."),
    ] = False,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="An ONNX bundle, for `btray predict` and `btray serve` without torch."
        ),
    ] = False,
) -> None:
    """Write a bundle in another form."""
    folder = directory or out
    if folder is None or (directory and out):
        raise UserError("give the folder of the new bundle once: btray models export BUNDLE DIR")
    if half == onnx:
        raise UserError("give --half for half precision or --onnx for an ONNX bundle, one of both")
    if onnx:
        _export_onnx(bundle, folder)
        return
    if data is None:
        raise UserError("--half measures the bundle anew; give --data")
    _export_half(bundle, data, folder)


def _export_onnx(bundle: str, out: Path) -> None:
    from btray.core.onnx_export import export_onnx

    export_onnx(open_bundle(bundle), out)
    typer.echo(str(out))


def _export_half(bundle: str, data: str, out: Path) -> None:
    from btray.cluster import connect
    from btray.data.dataset import Dataset

    dataset = Dataset.open(data)
    with loading("btray.evaluate.ensembles"):
        connect()
    from btray.evaluate.ensembles import halve

    with counting("answering held-out rows") as progress:
        made = halve(open_bundle(bundle), dataset, out, progress)
    _tell(made, out)


def _votes(text: str | None) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--weights {text}: write numbers with commas, such as 2,1,1") from None


def _tell(made: "Bundle", out: Path) -> None:
    """Say how the bundle did on held-out rows; its place is all that goes to stdout."""
    metrics = made.card.metrics
    where = "out of fold" if len(made.card.folds) > 1 else "validation"
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"{where}: accuracy {metrics['val_accuracy']:.4f}, macro-F1 {metrics['val_macro_f1']:.4f}, "
        f"loss {metrics['val_loss']:.4f}, {made.card.calibration.rows} images"
    )
    typer.echo(str(out))
