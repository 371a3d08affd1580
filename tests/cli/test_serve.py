"""What `btray serve` refuses before it starts anything."""

import socket

import pytest
import yaml
from typer.testing import CliRunner

from btray.cli import app
from btray.errors import UserError
from btray.serve import server
from btray.serve.config import ServeConfig


def refused(*arguments):
    done = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert isinstance(done.exception, UserError), done.exception
    return str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no bundle"),
        (["--host", "0.0.0.0"], "opens btray to the network"),
        (["--set", "limits.imges=3"], "did you mean limits.images"),
        (["--replicas", "4..1"], "min 4 is above max 1"),
        (["--replicas", "many"], "a number, or a range"),
        (["--tls-key", "key.pem"], "belong together"),
        (["--keys", "no-keys.json"], "no-keys.json"),
        (["models:/none@champion", "--tracking", "none"], "no tracked runs or models"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = refused(*arguments)
    assert message in told
    assert "\n" not in told


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: address already in use" in refused("--http-port", port)


def test_a_bundle_and_a_file_with_models_contradict_each_other(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"models": [{"bundle": "reference"}]}))
    assert "not both" in refused("here", "--config", file)


def test_options_become_settings(tmp_path, monkeypatch):
    seen = []

    class Told(Exception):  # noqa: N818 - it is a signal
        pass

    def stop(config, door):
        seen.append((config, door))
        raise Told

    monkeypatch.setattr(server, "serving", stop)
    monkeypatch.chdir(tmp_path)
    arguments = ["serve", "here", "--replicas", "0..3", "--keys", "k.json", "--grpc-port", "9999"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, Told)
    (config, door) = seen[0]
    assert isinstance(config, ServeConfig)
    assert config.models[0].bundle == str(tmp_path / "here")
    assert (config.replicas.min, config.replicas.max) == (0, 3)
    assert config.auth.keys_file == str(tmp_path / "k.json")
    assert config.tracking == str(tmp_path / "runs")
    assert (door.host, door.http_port, door.grpc_port) == ("127.0.0.1", 8000, 9999)
