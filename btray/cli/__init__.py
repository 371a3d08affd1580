"""The `btray` command: one file a group of commands."""

import io
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from btray.cli import bench as bench_command
from btray.cli import config as config_command
from btray.cli import data as data_command
from btray.cli import keys as keys_command
from btray.cli import models as models_command
from btray.cli import runs as runs_command
from btray.cli.doctor import doctor
from btray.cli.evaluate import evaluate
from btray.cli.explain import explain
from btray.cli.predict import predict
from btray.cli.serve import serve
from btray.cli.submit import submit
from btray.cli.train import train
from btray.cli.tune import tune
from btray.errors import CheckFailed, UserError
from btray.version import __version__

app = typer.Typer(
    name="btray",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data_command.app, name="data")
app.add_typer(config_command.app, name="config")
app.add_typer(runs_command.app, name="runs")
app.add_typer(models_command.app, name="models")
app.add_typer(keys_command.app, name="keys")
app.add_typer(bench_command.app, name="bench")
app.command()(train)
app.command()(tune)
app.command()(evaluate)
app.command()(predict)
app.command()(explain)
app.command()(serve)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(
    submit
)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    """Classify brain tumours in MRI slices on Ray. Research use only: not a medical device."""


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be UTF-8
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as error:
        _complain(str(error))
    except CheckFailed as finding:
        _complain(str(finding), code=3)
    except typer.TyperException as error:
        _complain(_usage(error))
    except typer.Abort:
        sys.exit(130)


def _usage(error: typer.TyperException) -> str:
    """Return a mistake in the use of a command as one line; empty when its help was shown."""
    context = getattr(error, "ctx", None)
    described = getattr(error, "format_message", error.__str__)()
    message = " ".join(described.replace("Value error, ", "").split()).rstrip(".")
    hint = f"; see `{context.command_path} --help`" if context else ""
    return message and f"{message}{hint}"


def _complain(message: str, code: int = 2) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True, emoji=False)
    if message:
        console.print(f"btray: {message}", markup=False, highlight=False)
    sys.exit(code)
