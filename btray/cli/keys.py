"""`btray keys`: who may ask a server."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from btray.cli.runs import Format, Output, print_json, print_table
from btray.errors import UserError

if TYPE_CHECKING:
    from btray.serve.keys import KeyEntry

app = typer.Typer(help="Make, list and revoke the API keys of a server.", no_args_is_help=True)

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Name = Annotated[str, typer.Argument(help="Whose key it is.")]
File = Annotated[Path, typer.Option("--file", help="File that holds the keys' hashes.")]
Lifetime = Annotated[
    str | None,
    typer.Option(help="How long it is valid, such as 90d or 12h; by default for ever."),
]


@app.command()
def create(
    name: Name,
    file: File,
    expires_in: Lifetime = None,
    requests_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second, of one replica.")
    ] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests in work at the same time.")
    ] = None,
) -> None:
    """Make a key and print it: it is kept nowhere and cannot be shown again."""
    from btray.serve.keys import Limits, create_key

    limits = Limits(requests_per_second=requests_per_second, burst=burst, concurrency=concurrency)
    typer.echo(create_key(file, name, _lifetime(expires_in), limits))


@app.command("list")
def list_keys(file: File, output: Output = Format.table) -> None:
    """List whose keys there are, never the keys."""
    from btray.serve.keys import read_keys

    entries = read_keys(file).keys
    if output is Format.json:
        print_json([entry.model_dump(mode="json", exclude={"sha256"}) for entry in entries])
        return
    table = Table("name", "state", "created (UTC)", "expires (UTC)", "rate", "burst", "at once")
    now = datetime.now(UTC)
    for entry in entries:
        table.add_row(*map(escape, _cells(entry, now)))
    print_table(table)


def _cells(entry: "KeyEntry", now: datetime) -> tuple[str, ...]:
    state = "valid" if entry.valid_at(now.timestamp()) else "expired"
    rate = f"{entry.requests_per_second:g}/s" if entry.requests_per_second else ""
    numbers = ("" if n is None else str(n) for n in (entry.burst, entry.concurrency))
    return (entry.name, state, _time(entry.created), _time(entry.expires), rate, *numbers)


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


@app.command()
def revoke(name: Name, file: File) -> None:
    """Take away all keys of a name; running servers know within a second."""
    from btray.serve.keys import revoke_key

    count = revoke_key(file, name)
    typer.echo(f"{name}: {count} key{'s' if count > 1 else ''} revoked")


@app.command()
def rotate(
    name: Name,
    file: File,
    grace: Annotated[str, typer.Option(help="How long the old key stays valid.")] = "24h",
    expires_in: Lifetime = None,
) -> None:
    """Make a new key for a name and print it; the old one stays valid for a while."""
    from btray.serve.keys import rotate_key

    typer.echo(rotate_key(file, name, _duration(grace), _lifetime(expires_in)))


def _lifetime(text: str | None) -> timedelta | None:
    return None if text is None else _duration(text)


def _duration(text: str) -> timedelta:
    """Return a duration such as 90d; raises UserError for what is none."""
    match = re.fullmatch(r"([0-9]{1,5})([smhd])", text)
    if match is None:
        raise UserError(f"{text}: write a duration as a number and s, m, h or d, such as 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
