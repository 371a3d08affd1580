"""`btray doctor`."""

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from btray.cli.config import ConfigFile, Overrides
from btray.config import load_config
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.doctor.checks import Check

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    config: ConfigFile = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Cluster to join, HOST:PORT; by default RAY_ADDRESS, else one is started here.",
            metavar="HOST:PORT",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON rather than a table.")
    ] = False,
) -> None:
    """Look whether a run with these settings would go well; exit code 1 if it would fail."""
    resolved = load_config(config, list(overrides or ()))
    if address and "://" in address:
        raise UserError(
            f"--address {address}: doctor joins a cluster by HOST:PORT; from outside, run it "
            f"there: btray submit --address {address} doctor"
        )
    if address:
        os.environ["RAY_ADDRESS"] = address
    from btray.doctor.examination import examine

    found = examine(resolved)
    failed = any(check.status == "fail" for check in found)
    if as_json:
        listed = [dataclasses.asdict(check) for check in found]
        typer.echo(json.dumps({"ok": not failed, "checks": listed}, indent=2))
    else:
        Console(soft_wrap=not os.isatty(1)).print(_table(found))
    raise typer.Exit(int(failed))


def _table(found: "list[Check]") -> Table:
    table = Table("check", "", "found", "what to do")
    for check in found:
        status = Text(check.status.value, style=_STYLES[check.status.value])
        table.add_row(check.name, status, Text(check.found), Text(check.advice))
    return table
