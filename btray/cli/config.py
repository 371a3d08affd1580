"""`btray config`: look at the settings."""

import json
from pathlib import Path
from typing import Annotated

import typer

from btray.config import Config, dump_config, load_config

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with settings.", metavar="FILE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, such as data.batch_size=64.", metavar="KEY=VALUE"),
]

app = typer.Typer(help="Show the settings of a run.", no_args_is_help=True)


@app.command()
def show(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Print the resolved settings as YAML that --config reads back."""
    typer.echo(dump_config(load_config(config, overrides or ())), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the settings: every field with its meaning and unit."""
    typer.echo(json.dumps(Config.model_json_schema(), indent=2))
