"""`btray submit` up to the cluster."""

import io

import pytest
from rich.console import Console

from btray.cli.submit import _follow, _interrupted, submit
from btray.errors import UserError
from btray.jobs.submission import JobOutOfSightError


class Client:
    stopped = None

    def get_address(self):
        return "http://head:8265"

    def stop_job(self, job):
        self.stopped = job


class Terminal(io.StringIO):
    def isatty(self):
        return True


def interrupt(monkeypatch, stdin):
    """Press Ctrl-C; return the client and what was said."""
    monkeypatch.setattr("sys.stdin", stdin)
    client, said = Client(), io.StringIO()
    assert _interrupted(client, "raysubmit_1", Console(file=said, soft_wrap=True)) == 130
    return client, said.getvalue()


def test_ctrl_c_at_a_terminal_stops_when_asked_to(monkeypatch):
    client, said = interrupt(monkeypatch, Terminal("s\n"))
    assert client.stopped == "raysubmit_1"
    assert "stop the job, or detach" in said


@pytest.mark.parametrize("stdin", [Terminal("d\n"), Terminal(""), io.StringIO("s\n")])
def test_ctrl_c_leaves_the_job_otherwise_and_says_how_to_follow_it(monkeypatch, stdin):
    client, said = interrupt(monkeypatch, stdin)
    assert client.stopped is None
    assert "btray submit --address http://head:8265 --attach raysubmit_1" in said


def test_a_command_or_a_job_is_asked_for():
    with pytest.raises(UserError, match="or --attach JOB"):
        submit()
    with pytest.raises(UserError, match="or --attach JOB"):
        submit(["train"], attach="raysubmit_1")


def test_what_a_cluster_does_not_run_is_refused():
    with pytest.raises(UserError, match="serve: a cluster runs train, tune"):
        submit(["serve"])


def test_a_cluster_that_no_longer_answers_ends_it_with_1_and_how_to_go_on(monkeypatch, capsys):
    def follow(client, job, write):
        raise JobOutOfSightError("http://head:8265 no longer answers (closed)")

    monkeypatch.setattr("btray.jobs.submission.follow", follow)
    assert _follow(Client(), "raysubmit_1") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "btray: http://head:8265 no longer answers (closed); job raysubmit_1 may"
    )
    assert said.endswith("btray submit --address http://head:8265 --attach raysubmit_1")
