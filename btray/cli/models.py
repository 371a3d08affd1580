"""`btray models`: registered versions, ensembles, and other forms of bundles."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from btray.cli import ensembles
from btray.cli.runs import STORAGE, Experiment, Format, Output, Tracking, print_json, print_table

if TYPE_CHECKING:
    from btray.core.bundle import Bundle
    from btray.registry.models import Registry, Version

app = typer.Typer(
    help="Register and promote models; join, distil and export bundles.", no_args_is_help=True
)
ensembles.register(app)

Name = Annotated[str, typer.Argument(help="Name of a model.")]


@app.command()
def register(
    bundle: Annotated[str, typer.Argument(help="Bundle or run: a folder or a URI.")],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    evaluation: Annotated[
        Path | None,
        typer.Option(
            help="Folder that btray evaluate wrote for the test split; by default the one in "
            "the bundle's run, if there is one."
        ),
    ] = None,
    tracking: Tracking = None,
    experiment: Experiment = "btray",
) -> None:
    """Store a bundle as a new version of a model, the challenger."""
    from btray.core.bundle import load_bundle
    from btray.registry.client import locate
    from btray.registry.models import Registry

    opened = load_bundle(bundle)
    found = evaluation or _evaluation_beside(opened)
    registry = Registry(locate(tracking, STORAGE), experiment, create=True)
    version = registry.register(opened, name, found)
    typer.echo(f"{name}:{version.number}")
    if found is None:
        typer.echo("note: no evaluation, so it can be promoted by --force only", err=True)


def _evaluation_beside(bundle: "Bundle") -> Path | None:
    """Return the folder of the report on the test split that lies in a bundle's run."""
    folder = Path(bundle.uri).absolute().parent / "evaluation-test"
    return folder if "://" not in bundle.uri and folder.is_dir() else None


@app.command("list")
def list_models(tracking: Tracking = None, output: Output = Format.table) -> None:
    """List the models with their newest version, champion and challenger."""
    registry = _open(tracking)
    models = {name: registry.versions(name) for name in registry.names()}
    if output is Format.json:
        print_json([asdict(version) for versions in models.values() for version in versions])
        return
    table = Table("model", "versions", "champion", "challenger")
    for name, versions in models.items():
        held = {alias: one.number for one in versions for alias in one.aliases}
        cells = (held.get("champion", ""), held.get("challenger", ""))
        table.add_row(escape(name), str(len(versions)), *cells)
    print_table(table)


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Model, or one version.", metavar="N[@alias|:v]")],
    tracking: Tracking = None,
    output: Output = Format.table,
) -> None:
    """Show a model's versions, or all that is known of one version."""
    from btray.registry.models import parse_reference

    name, alias, number = parse_reference(model)
    registry = _open(tracking)
    if alias is None and number is None:
        _show_versions(registry.versions(name), output)
        return
    version = registry.get(name, alias, number)
    if output is Format.json:
        print_json(asdict(version))
        return
    table = Table("what", "value")
    for key, value in asdict(version).items():
        if key != "tags":
            table.add_row(key, escape(", ".join(value) if isinstance(value, list) else value))
    for key, value in sorted(version.tags.items()):
        table.add_row(escape(key), escape(value))
    print_table(table)


def _show_versions(versions: "list[Version]", output: Format) -> None:
    if output is Format.json:
        print_json([asdict(version) for version in versions])
        return
    keys = ("btray.test_accuracy", "btray.test_macro_f1", "btray.bundle")
    table = Table("version", "aliases", "registered (UTC)", "accuracy", "macro-F1", "bundle")
    for version in versions:
        known = [version.tags.get(key, "") for key in keys]
        created = version.created[:19].replace("T", " ")
        cells = (version.number, ", ".join(version.aliases), created, *known)
        table.add_row(*map(escape, cells))
    print_table(table)


@app.command()
def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="Number of the version, or an alias of it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Promote whatever speaks against it, and record that.")
    ] = False,
    tracking: Tracking = None,
) -> None:
    """Make a version the champion, unless it is worse on the same test rows (exit code 3)."""
    registry = _open(tracking)
    by = {"number": version} if version.isdigit() else {"alias": version}
    chosen = registry.get(name, **by)
    comparison = registry.promote(chosen, force)
    if comparison is not None:
        typer.echo(f"against the champion before: {comparison}")
    typer.echo(f"{name}:{chosen.number} is the champion")


@app.command()
def rollback(name: Name, tracking: Tracking = None) -> None:
    """Make the champion before the present one champion again."""
    former = _open(tracking).rollback(name)
    typer.echo(f"{name}:{former.number} is the champion again")


def _open(tracking: str | None) -> "Registry":
    from btray.registry.client import locate
    from btray.registry.models import Registry

    return Registry(locate(tracking, STORAGE))
