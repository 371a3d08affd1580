"""Whatever hinders a connection is one line."""

import socket

import pytest
import ray

from btray.errors import UserError
from btray.jobs.connection import DEFAULT_ADDRESS, connect, job_server


def complaint(address):
    with pytest.raises(UserError) as refused:
        connect(address)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_cluster_of_our_versions_is_connected_to(dashboard):
    assert connect(dashboard.url + "/").get_address() == dashboard.url


def test_the_address_is_the_option_or_rays_variables_or_local(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert job_server(None) == DEFAULT_ADDRESS
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert job_server(None) == "http://head:8265"
    assert job_server("https://other:443/") == "https://other:443"


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://"])
def test_another_kind_of_address_is_refused(address):
    with pytest.raises(UserError, match=f"--address {address}: give the job server's URL"):
        job_server(address)


def test_nothing_there(dashboard):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert complaint(url).startswith(f"{url}: nothing answers (Connection refused)")


def test_something_else_there(dashboard):
    dashboard.answers.clear()
    assert "not a Ray dashboard" in complaint(dashboard.url)


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "the cluster asks for a token"), (403, "the cluster refuses this token")],
)
def test_a_missing_or_wrong_token(dashboard, status, said):
    dashboard.refusal = status
    assert complaint(dashboard.url).startswith(f"{dashboard.url}: {said}; put the cluster's into")


def test_another_ray(dashboard):
    dashboard.answers["/api/version"]["ray_version"] = "2.1.0"
    message = complaint(dashboard.url)
    assert f"here are Ray {ray.__version__} and Python 3." in message
    assert f"at {dashboard.url} Ray 2.1.0 and Python 3." in message


def test_another_python(dashboard):
    dashboard.answers["/api/v0/cluster_metadata"]["data"]["pythonVersion"] = "3.8.1"
    assert "and Python 3.8.1: use a client of the cluster's versions" in complaint(dashboard.url)
