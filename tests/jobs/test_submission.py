"""A job's order, its log and its end, with a job server that does as told."""

from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

from btray.errors import UserError
from btray.jobs import submission
from btray.jobs.submission import JobOutOfSightError, Order, exit_code, follow, submit, why


class Client:
    """Ray's client, of a server that knows one job."""

    def __init__(self, *states, log=()):
        self.states = list(states)
        self.log = log
        self.sent = None

    def get_address(self):
        return "http://head:8265"

    def submit_job(self, **order):
        self.sent = order
        return "raysubmit_1"

    def get_job_info(self, job):
        if job != "raysubmit_1":
            raise RuntimeError("Request failed with status code 404: no such job.")
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    async def tail_job_logs(self, job):
        for text in self.log:
            yield text


def state(status, code=None, message=""):
    return SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message=message)


def test_an_order_is_sent_with_references_of_secrets_only(tmp_path):
    client = Client()
    arguments = ["train", "--set", "run.name=a b"]
    order = Order(arguments, tmp_path, {"OMP_NUM_THREADS": "1"}, {"KEY": "file:/run/key"})
    assert submit(client, order) == "raysubmit_1"
    assert client.sent["entrypoint"] == "python -m btray.jobs train --set 'run.name=a b'"
    assert client.sent["metadata"]["command"] == "train"
    sent = client.sent["runtime_env"]
    assert sent["env_vars"] == {"OMP_NUM_THREADS": "1", "BTRAY_SECRETS": '{"KEY": "file:/run/key"}'}
    assert sent["worker_process_setup_hook"] == "btray.jobs.secrets.resolve"


def test_without_secrets_it_is_plain_btray(tmp_path):
    order = Order(["predict", "a.png"], tmp_path)
    assert order.entrypoint == "python -m btray predict a.png"
    assert order.runtime_env(tmp_path / "a.zip") == {
        "working_dir": str(tmp_path / "a.zip"),
        "env_vars": {},
    }


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (state("SUCCEEDED", 0), 0),
        (state("FAILED", 1), 1),
        (state("FAILED", 2), 2),
        (state("FAILED", 3), 3),
        (state("FAILED", -9), 137),
        (state("FAILED"), 1),
        (state("STOPPED"), 143),
    ],
)
def test_the_exit_code_is_the_commands(end, code, monkeypatch):
    monkeypatch.setattr(submission, "_POLL_S", 0)
    said = []
    client = Client(state("RUNNING"), state("RUNNING"), end, log=["one\n", "two\n"])
    assert follow(client, "raysubmit_1", said.append) == code
    assert said == ["one\n", "two\n"]
    assert exit_code(client, "raysubmit_1") == code


def test_what_never_ran_says_why():
    broken = Client(state("FAILED", message="runtime_env setup failed:\n  no space"))
    assert why(broken, "raysubmit_1") == "runtime_env setup failed: no space"
    assert why(Client(state("FAILED", 2, "Job entrypoint failed")), "raysubmit_1") == ""


def test_a_job_nobody_knows_is_one_line():
    with pytest.raises(UserError, match="other: no such job on http://head:8265"):
        follow(Client(), "other", print)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("WebSocket closed\nwith code 1006"),
        ConnectionRefusedError(111, "no"),
    ],
)
def test_a_cluster_that_goes_while_it_is_followed_is_one_line(error):
    class Gone(Client):
        async def tail_job_logs(self, job):
            yield "first line\n"
            raise error

    said = []
    with pytest.raises(JobOutOfSightError, match="http://head:8265 no longer answers") as lost:
        follow(Gone(state("RUNNING")), "raysubmit_1", said.append)
    assert said == ["first line\n"]
    assert "\n" not in str(lost.value)
