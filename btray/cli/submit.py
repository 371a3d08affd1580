"""`btray submit`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from btray.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

COMMANDS = ("train", "tune", "evaluate", "predict", "explain", "data", "models", "runs", "doctor")


def submit(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Command of btray and its options: train|tune|evaluate|predict …",
            metavar="COMMAND …",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's job server; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or "
            "http://127.0.0.1:8265.",
            metavar="URL",
        ),
    ] = None,
    working_dir: Annotated[
        Path,
        typer.Option(
            help="Folder that goes along, less what .gitignore and .rayignore name.",
            exists=True,
            file_okay=False,
        ),
    ] = Path(),
    env: Annotated[
        list[str] | None,
        typer.Option(help="Environment variable of the job; not secret.", metavar="NAME=VALUE"),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            help="Environment variable whose value is looked up on the cluster's nodes: "
            "NAME=file:/path or NAME=env:OTHER.",
            metavar="NAME=REFERENCE",
        ),
    ] = None,
    python: Annotated[
        str, typer.Option(help="Python of the cluster's nodes.", metavar="PATH")
    ] = "python",
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the job's name and leave it running.")
    ] = False,
    attach: Annotated[
        str | None, typer.Option(help="Follow a job submitted before.", metavar="JOB")
    ] = None,
) -> None:
    """Run a command of btray on a cluster and follow it; its exit code becomes ours."""
    if bool(arguments) == bool(attach):
        raise UserError("give either a command of btray, such as train, or --attach JOB")
    if arguments and arguments[0] not in COMMANDS:
        raise UserError(f"{arguments[0]}: a cluster runs {', '.join(COMMANDS)}")
    from btray.jobs.connection import connect
    from btray.jobs.secrets import parse_references, parse_variables
    from btray.jobs.submission import Order
    from btray.jobs.submission import submit as send

    variables, secrets = parse_variables(env or ()), parse_references(secret or ())
    client = connect(address)
    job = attach or send(
        client, Order(arguments or (), working_dir.resolve(), variables, secrets, python)
    )
    if detach:
        typer.echo(job)
        return
    raise typer.Exit(_follow(client, job))


def _follow(client: "JobSubmissionClient", job: str) -> int:
    """Show a job's log until its end or Ctrl-C; return the exit code."""
    from btray.jobs.submission import JobOutOfSightError, follow, why

    errors = Console(stderr=True, soft_wrap=True)
    try:
        errors.print(f"job {job} on {client.get_address()}", style="dim", highlight=False)
        code = follow(client, job, _write)
    except KeyboardInterrupt:
        return _interrupted(client, job, errors)
    except JobOutOfSightError as error:
        again = f"follow it again with: {_following(client, job)}"
        errors.print(f"btray: {error}; job {job} may go on; {again}", markup=False, highlight=False)
        return 1
    if code and (reason := why(client, job)):
        errors.print(f"btray: the job did not run: {reason}", markup=False, highlight=False)
    return code


def _following(client: "JobSubmissionClient", job: str) -> str:
    return f"btray submit --address {client.get_address()} --attach {job}"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _interrupted(client: "JobSubmissionClient", job: str, errors: Console) -> int:
    """Stop the job or leave it, as the person at a terminal says; leave it where there is none."""
    if sys.stdin.isatty() and _wants_stop(errors):
        client.stop_job(job)
        errors.print(f"job {job} is told to stop", highlight=False)
    else:
        follow = f"follow it with: {_following(client, job)}"
        errors.print(f"job {job} goes on; {follow}", markup=False, highlight=False)
    return 130


def _wants_stop(errors: Console) -> bool:
    errors.print("\n[bold]s[/]top the job, or [bold]d[/]etach from it? ", end="")
    try:
        return sys.stdin.readline().strip().lower().startswith("s")
    except KeyboardInterrupt:
        return False
