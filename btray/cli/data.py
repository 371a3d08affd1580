"""`btray data`: make data sets and look at them."""

import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from btray.cli import import_options as options
from btray.cli.config import ConfigFile, Overrides
from btray.cli.progress import bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from btray.data.dataset import Dataset, Manifest
    from btray.data.importer import ImportOptions
    from btray.data.importer import Progress as Report
    from btray.data.sources.base import Source

app = typer.Typer(help="Make data sets and look at them.", no_args_is_help=True)


def _finite(share: float) -> float:
    if not math.isfinite(share):
        raise typer.BadParameter(f"{share} is not a share")
    return share


Destination = Annotated[
    str, typer.Argument(help="Data set to make: a folder or a URI (s3://…).", metavar="DST")
]
DatasetArgument = Annotated[str, typer.Argument(help="Data set: a folder or a URI.")]
Validation = Annotated[
    float, typer.Option(help="Share of the images that go to validation.", callback=_finite)
]
Test = Annotated[
    float, typer.Option(help="Share of the images that go to the test split.", callback=_finite)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace another data set at the destination.")
]
FINDINGS = (
    "leakage",
    "official-leakage",
    "conflict",
    "near-conflict",
    "exact-duplicates",
    "near-duplicates",
    "label-errors",
    "blank",
    "inverted",
    "oversized-border",
    "shortcut",
)
_PHASES = {
    "hash": "hashing files",
    "read": "reading and decoding",
    "group": "grouping duplicates",
    "write": "writing",
    "images": "examining images",
    "twins": "comparing images",
    "labels": "predicting labels",
}


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder, bucket (s3://…), archive, or table of images (CSV, Parquet).",
            metavar="SRC",
        ),
    ],
    destination: Destination,
    format_: options.Format = "auto",
    classes: options.Classes = None,
    labels: options.Labels = None,
    pseudonym_key_file: options.KeyFile = None,
    modality: options.Modality = "mr",
    axis: options.Axis = "axial",
    slices: options.Slices = None,
    every: options.Every = 1,
    validation: Validation = 0.15,
    test: Test = 0.15,
    seed: Annotated[
        int, typer.Option(help="Seed of the assignment to splits.", min=0, max=2**32 - 1)
    ] = 0,
    exclude: options.Exclude = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail when a file cannot be used.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Import images as one data set: checked, twins kept together, split by patient or group."""
    from btray.data.importer import ImportOptions
    from btray.data.sources.detect import SourceOptions, open_source

    class_names = options.class_names(classes)
    reading = SourceOptions.model_validate(
        {
            "format": format_,
            "class_names": class_names,
            "labels": labels,
            "pseudonym_key_file": pseudonym_key_file,
            "modality": modality,
            "axis": axis,
            "slices": slices,
            "every": every,
        }
    )
    importing = ImportOptions(
        validation=validation,
        test=test,
        seed=seed,
        class_names=class_names,
        strict=strict,
        overwrite=overwrite,
        exclude_from_train_what_is_in_test=exclude,
    )
    with open_source(source, reading) as opened:
        _run(opened, destination, importing)


@app.command()
def download(
    source: Annotated[str, typer.Argument(help="kaggle:owner/dataset", metavar="SRC")],
    destination: Annotated[str, typer.Argument(help="Folder to make.", metavar="DST")],
) -> None:
    """Download a public data set, to import it then."""
    from btray.data.sources.kaggle import download as download_

    folder = download_(source, destination)
    typer.echo(f"{folder}: downloaded; now `btray data import {folder} DATASET`")


@app.command()
def phantom(
    destination: Destination,
    images: Annotated[int, typer.Option(help="Slices over all patients.")] = 2000,
    seed: Annotated[
        int, typer.Option(help="Seed of the patients and of the splits.", min=0, max=2**32 - 1)
    ] = 0,
    validation: Validation = 0.15,
    test: Test = 0.15,
    overwrite: Overwrite = False,
) -> None:
    """Make a data set of synthetic slices, for trying btray out. No medical meaning."""
    from btray.data.importer import ImportOptions
    from btray.data.sources.phantom_source import PhantomSource

    importing = ImportOptions(validation=validation, test=test, seed=seed, overwrite=overwrite)
    _run(PhantomSource(images, seed), destination, importing)


@app.command()
def split(
    dataset: DatasetArgument,
    out: Annotated[
        str | None, typer.Option(help="Where the result goes; by default the data set is replaced.")
    ] = None,
    validation: Validation = 0.15,
    test: Test = 0.15,
    folds: Annotated[
        int, typer.Option(help="Folds for cross-validation; 0: one holdout.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the assignment.", min=0, max=2**32 - 1)] = 0,
    official: Annotated[
        bool,
        typer.Option("--official/--ignore-official", help="Keep the source's own splits, or not."),
    ] = True,
    exclude: options.Exclude = False,
) -> None:
    """Assign the rows to splits or folds anew: by patient and near duplicate, stratified."""
    from btray.data.dataset import Dataset
    from btray.data.resplit import SplitOptions, resplit

    splitting = SplitOptions(
        validation=validation,
        test=test,
        folds=folds,
        seed=seed,
        official=official,
        exclude_from_train_what_is_in_test=exclude,
    )
    console = Console(soft_wrap=True, highlight=False)
    _print_summary(console, resplit(Dataset.open(dataset), out, splitting))
    console.print(f"data set: {escape(out or dataset)}")


@app.command()
def show(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    per_class: Annotated[
        int | None, typer.Option(help="Slices of each class: 8, or 1 with --stages.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice.", min=0, max=2**32 - 1)] = 0,
    stages: Annotated[
        bool, typer.Option("--stages", help="Draw each slice through every stage of preprocessing.")
    ] = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Draw some slices of every class, or (--stages) what preprocessing makes of them."""
    from btray.config import load_config
    from btray.data.dataset import Dataset
    from btray.data.sheet import contact_sheet, stage_sheet
    from btray.errors import UserError

    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: a sheet is a PNG file; give a name that ends in .png")
    if (config or overrides) and not stages:
        raise UserError("--config and --set matter to --stages only; add it or leave them out")
    settings, opened = load_config(config, overrides or ()), Dataset.open(dataset)
    if stages:
        sheet = stage_sheet(opened, settings, split, 1 if per_class is None else per_class, seed)
    else:
        sheet = contact_sheet(opened, split, 8 if per_class is None else per_class, seed)
    try:
        out.write_bytes(sheet)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    typer.echo(str(out))


@app.command()
def audit(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="Folder for audit.html and audit.json.")],
    fail_on: Annotated[
        str | None,
        typer.Option(help="Findings, a,b,c, that make the command fail with exit code 3."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the cross-validation.", min=0, max=2**32 - 1)
    ] = 0,
) -> None:
    """Look for what makes scores too good: twins, leaks, label conflicts, shortcuts."""
    from btray.data.dataset import Dataset
    from btray.errors import CheckFailed, UserError

    opened = Dataset.open(dataset)
    wanted = [name.strip() for name in fail_on.split(",")] if fail_on else []
    if unknown := [name for name in wanted if name not in FINDINGS]:
        raise UserError(f"--fail-on {unknown[0]}: not a finding; give {', '.join(FINDINGS)}")
    from btray.cli.loading import loading
    from btray.cluster import connect

    with _progress() as report:
        with loading("btray.data.audit.audit", "btray.data.audit.report"):
            connect()
        from btray.data.audit.audit import audit as run
        from btray.data.audit.report import write_audit

        found = write_audit(run(opened, seed, report), opened, out)
    counts: dict[str, int | None] = found["findings"]
    console = Console(soft_wrap=True, highlight=False)
    for name, count in counts.items():
        console.print(f"{name}: {'not measured' if count is None else f'{count:,}'}")
    console.print(f"report: {escape(str(out / 'audit.html'))}")
    if blind := [name for name in wanted if counts[name] is None]:
        raise UserError(
            f"{dataset}: {', '.join(blind)} cannot be measured; see {out / 'audit.html'}"
        )
    if failed := [f"{name} ({counts[name]:,})" for name in wanted if counts[name]]:
        raise CheckFailed(f"{dataset}: found {', '.join(failed)}; see {out / 'audit.html'}")


@app.command()
def info(
    dataset: DatasetArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Tell what a data set holds."""
    from btray.data.dataset import Dataset

    opened = Dataset.open(dataset)
    if as_json:
        typer.echo(opened.manifest.model_dump_json(indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    _print_summary(console, opened.manifest)
    console.print(f"content hash: {opened.manifest.content_hash}")


def _run(source: "Source", destination: str, importing: "ImportOptions") -> None:
    from btray.data.dataset import Dataset
    from btray.data.importer import run_import

    with _progress() as report:
        result = run_import(source, destination, importing, report)
    console = Console(soft_wrap=True, highlight=False)
    for note in result.notes:
        console.print(escape(note))
    if result.unchanged:
        console.print(f"{escape(destination)}: already imported, nothing to do")
        return
    _print_summary(console, result.manifest)
    _print_quarantine(console, Dataset.open(destination))
    console.print(f"data set: {escape(destination)}")


@contextmanager
def _progress() -> "Iterator[Report]":
    with bar() as shown:
        task = shown.add_task("listing", total=None)

        def report(phase: str, done: int, total: int) -> None:
            shown.update(task, description=_PHASES[phase], completed=done, total=total)

        yield report


def _print_summary(console: Console, manifest: "Manifest") -> None:
    table = Table("split", *manifest.class_names, "all")
    for column in table.columns[1:]:
        column.justify = "right"
    order = [s for s in ("train", "validation", "test", "excluded") if s in manifest.counts]
    for split in order:
        counts = [manifest.counts[split].get(name, 0) for name in manifest.class_names]
        table.add_row(split, *(f"{count:,}" for count in counts), f"{sum(counts):,}")
    console.print(table)
    for name, found in (
        ("exact duplicates", manifest.exact_duplicates),
        ("near duplicates", manifest.near_duplicates),
    ):
        console.print(f"{name}: {found['groups']:,} groups, {found['images']:,} images")
    if manifest.split.folds:
        own = ""
        if manifest.split.official_folds:
            lost = manifest.split.out_of_folds
            own = f" (the source's own; {lost:,} images whose twins are in another left out)"
        console.print(f"folds: {manifest.split.folds}{own}")
    console.print(f"label conflicts: {manifest.label_conflicts:,}")
    console.print(f"excluded: {sum(manifest.counts.get('excluded', {}).values()):,}")
    console.print(f"quarantined: {manifest.quarantined:,}")


def _print_quarantine(console: Console, dataset: "Dataset") -> None:
    from btray.data.dataset import QUARANTINE
    from btray.data.importer import quarantine

    if not dataset.manifest.quarantined:
        return
    for entry in quarantine(dataset, limit=5):
        console.print(f"  {escape(entry.path)}: {escape(entry.reason)} ({entry.code})")
    console.print(f"  all of them: {escape(dataset.uri)}/{QUARANTINE}")
