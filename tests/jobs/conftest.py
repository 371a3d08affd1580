"""A dashboard that says what a test has it say."""

import json
import platform
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray


class Dashboard(ThreadingHTTPServer):
    """Answers like the head's dashboard; `refusal` is the status of what needs a token."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {
            "/api/authentication_mode": {"authentication_mode": "disabled"},
            "/api/version": {"version": "4", "ray_version": ray.__version__},
            "/api/v0/cluster_metadata": {"data": {"pythonVersion": platform.python_version()}},
        }
        self.refusal = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        refused = self.server.refusal if self.path != "/api/authentication_mode" else None
        found = self.server.answers.get(self.path)
        body = b"Unauthorized" if refused == 401 else b"Forbidden" if refused else b"{}"
        if found is not None and not refused:
            body = json.dumps(found).encode()
        self.send_response(refused or (200 if found is not None else 404))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def dashboard(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")  # and back to what it was, whatever the code sets
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with Dashboard() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
