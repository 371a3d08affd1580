"""A command of btray sent to a cluster, its log followed to the end."""

import asyncio
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from btray.errors import UserError
from btray.jobs.package import pack
from btray.jobs.secrets import VARIABLE
from btray.version import __version__

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SETUP_HOOK: Final = "btray.jobs.secrets.resolve"
"""What every worker of a job with secrets runs first."""
_SETTLING_S: Final = 10.0
_POLL_S: Final = 0.1


class JobOutOfSightError(Exception):
    """The cluster no longer answers; the job may go on."""


@dataclass(frozen=True)
class Order:
    """What is to be run, and with what."""

    arguments: Sequence[str]
    """Command and options of btray, such as `train --config quick.yaml`."""
    working_dir: Path
    """Folder that goes along."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables; everyone who may look at the cluster sees them."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """References of environment variables, looked up on the nodes."""
    python: str = "python"
    """Python of the cluster's nodes."""

    @property
    def entrypoint(self) -> str:
        """The shell's command line on the cluster."""
        module = "btray.jobs" if self.secrets else "btray"
        return shlex.join([self.python, "-m", module, *self.arguments])

    def runtime_env(self, archive: Path) -> dict[str, Any]:
        """Return what Ray is told of the job's environment."""
        variables = dict(self.variables)
        if self.secrets:
            variables[VARIABLE] = json.dumps(dict(self.secrets))
        hook = {"worker_process_setup_hook": SETUP_HOOK} if self.secrets else {}
        return {"working_dir": str(archive), "env_vars": variables, **hook}


def submit(client: "JobSubmissionClient", order: Order) -> str:
    """Send a command; return the job's name.

    Raises:
        UserError: the working directory is too large, or the cluster refuses the job.

    """
    with TemporaryDirectory() as temporary:
        archive = Path(temporary) / "working_dir.zip"
        pack(order.working_dir, archive)
        try:
            return client.submit_job(
                entrypoint=order.entrypoint,
                runtime_env=order.runtime_env(archive),
                metadata={"btray": __version__, "command": order.arguments[0]},
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the cluster does not take the job: {reason}") from None


def follow(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> int:
    """Pass a job's log on as it grows; return the exit code of its command.

    Raises:
        UserError: no such job.
        JobOutOfSightError: the cluster stopped answering.

    """
    from aiohttp import ClientError

    try:
        _details(client, job)
        asyncio.run(_tail(client, job, write))
        return exit_code(client, job)
    except (ClientError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise JobOutOfSightError(f"{client.get_address()} no longer answers ({reason})") from None


async def _tail(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> None:
    async for text in client.tail_job_logs(job):
        write(text)


def exit_code(client: "JobSubmissionClient", job: str) -> int:
    """Wait until a job whose log has ended is over; return its command's exit code.

    A signal counts as in a shell (128 + its number), and a job that never ran as failed.
    """
    deadline = time.monotonic() + _SETTLING_S
    details = _details(client, job)
    while not details.status.is_terminal() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        details = _details(client, job)
    code: int | None = details.driver_exit_code
    if details.status.name == "SUCCEEDED":
        return 0
    if details.status.name == "STOPPED":
        return 143
    if code is None:
        return 1
    return 128 - code if code < 0 else code


def why(client: "JobSubmissionClient", job: str) -> str:
    """Return what the cluster says of a job's end, for one whose command never ran; else ''."""
    details = _details(client, job)
    if details.driver_exit_code is not None or details.status.name != "FAILED":
        return ""
    return " ".join(str(details.message or "").split())


def _details(client: "JobSubmissionClient", job: str) -> Any:  # noqa: ANN401 - Ray's JobDetails
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            raise UserError(f"{job}: no such job on {client.get_address()}") from None
        raise
