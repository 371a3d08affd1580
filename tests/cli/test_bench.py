import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from btray.cli import app
from btray.errors import CheckFailed, UserError
from btray.serve.load_clients import CLASSIFY


class Handler(BaseHTTPRequestHandler):
    """Answers, until it has answered as often as the server may; then it is overloaded."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seen = self.server.seen
        seen.append((self.path, body, self.headers.get("Authorization")))
        answered = len(seen) <= self.server.answers
        status, value = (
            (200, {"class": "glioma"})
            if answered
            else (503, {"error": {"code": "overloaded", "message": "come again"}})
        )
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    answers = 10**9

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as served:
        served.seen = []
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def run(*arguments):
    return CliRunner().invoke(app, ["bench", "serve", *map(str, arguments)])


BRIEF = ("--duration", 1, "--warmup", 0)


def test_a_table_and_the_files(server, tmp_path):
    result = run(server.url, "--connections", 2, *BRIEF, "--key", "k", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"{server.url}{CLASSIFY}" in result.stdout
    assert "latency p99.9" in result.stdout
    found = json.loads((tmp_path / "out" / "load.json").read_text())
    assert found["requests"] == found["answered"] == len(server.seen)
    assert found["loop"] == "closed"
    assert {key for _, _, key in server.seen} == {"Bearer k"}
    assert (tmp_path / "out" / "latency.png").stat().st_size > 1000


def test_json_of_an_open_loop_in_steps(server):
    steps = "20:1,0:1,60:1"
    result = run(server.url, "--step", steps, "--warmup", 0, "--format", "json", "--model", "m")
    found = json.loads(result.stdout)
    assert found["loop"] == "open"
    assert [row["rate"] for row in found["seconds"]] == [20, 0, 60]
    assert found["seconds"][1]["requests"] == 0
    assert found["requests"] == len(server.seen) > 20
    assert {path for path, _, _ in server.seen} == {f"{CLASSIFY}?model=m"}


def test_images_of_ones_own(server, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    run(server.url, "--rate", 40, *BRIEF, "--images", tmp_path)
    assert {body for _, body, _ in server.seen} == {b"a.png", b"b.png"}


def test_a_check_that_finds_something(server):
    server.answers = 3  # of some fifty
    result = run(server.url, "--rate", 50, *BRIEF, "--fail-on", "errors>50%,p50>1000s")
    assert isinstance(result.exception, CheckFailed)
    assert str(result.exception).startswith("errors ")
    assert "503 overloaded" in result.stdout
    server.seen.clear()
    server.answers = 10**9
    assert run(server.url, "--rate", 50, *BRIEF, "--fail-on", "errors>0").exit_code == 0


def test_with_no_answer_it_failed(server):
    server.answers = 0
    assert run(server.url, *BRIEF).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:8000",), "write it like http://"),
        (("http://h", "--step", "5"), "--step"),
        (("http://h", "--step", "5:0"), "--step"),
        (("http://h", "--step", "5:1", "--rate", "5"), "leave out --rate"),
        (("http://h", "--fail-on", "fast"), "--fail-on"),
        (("http://h", "--images", "/no/such"), "no such file"),
        (("https://h", "--ca", "/no/such"), "cannot be read"),
        (("http://127.0.0.1:1",), "connection refused"),
    ],
)
def test_mistakes(arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
