import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from btray.errors import UserError
from btray.serve import dataplane
from btray.serve.certificates import read_certificate
from btray.serve.dataplane import (
    MAX_RUNTIME_PATH,
    PlaneLimits,
    data_plane_environment,
    find_haproxy,
)
from btray.serve.front import FRONT_HEADER
from btray.serve.haproxy_edit import MARK, Edit, edit
from tests.ports import free_port
from tests.serve.certificates import certificate

HAPROXY, WHY_NOT = find_haproxy()
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason=WHY_NOT)
LIMITS = PlaneLimits(header_s=1, body_bytes=4096, idle_s=20)
HEALTHZ = "/ray.serve.RayServeAPIService/Healthz"


@pytest.fixture(scope="module")
def short():
    """Make folders with paths short enough for sockets."""
    made = []

    def make():
        made.append(Path(tempfile.mkdtemp(prefix="btray-", dir="/tmp")))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder)


class Replica:
    """What Ray Serve's replica is to HAProxy: HTTP and gRPC on loopback."""

    def __init__(self):
        self.seen = []
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(200, {"headers": {k.lower(): v for k, v in self.headers.items()}})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                replica.seen.append(self.path)
                if self.path == "/die":  # in mid-request, without a word
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                elif self.path == "/busy":
                    self.answer(503, {"error": {"code": "overloaded"}})
                else:
                    self.answer(200, {"bytes": len(body)})

            def answer(self, status, content):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.grpc = grpc.server(ThreadPoolExecutor(2), handlers=[Generic()])
        self.grpc_port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()

    @property
    def http_port(self):
        return self.http.server_port

    def stop(self):
        self.http.shutdown()
        self.http.server_close()
        self.grpc.stop(0)


class Generic(grpc.GenericRpcHandler):
    """Answers health checks as Ray does, and everything else with its metadata."""

    def service(self, details):
        if details.method == HEALTHZ:
            return grpc.unary_unary_rpc_method_handler(lambda *_: b"\x0a\x07success")
        metadata = json.dumps([list(pair) for pair in details.invocation_metadata]).encode()
        return grpc.unary_unary_rpc_method_handler(lambda *_: metadata)


@dataclass
class Plane:
    """A running HAProxy."""

    folder: Path
    http_port: int
    grpc_port: int
    told: dict
    process: subprocess.Popen
    replica: Replica | None
    context: ssl.SSLContext | None = None

    def connection(self):
        if self.context is None:
            return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        return http.client.HTTPSConnection(
            "localhost", self.http_port, timeout=30, context=self.context
        )

    def ask(self, method, path, body=None, headers=None):
        connection = self.connection()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


def start(folder, replica, context=None, **tls):
    environment, reason = data_plane_environment(folder, LIMITS, **tls)
    assert reason == ""
    ports = free_port(), free_port()
    inside = (replica.http_port, replica.grpc_port) if replica else (free_port(), free_port())
    script = str(Path(__file__).with_name("render_haproxy.py"))
    command = [sys.executable, script, "127.0.0.1", *map(str, (*ports, *inside))]
    rendered = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, check=True, text=True
    )
    told = json.loads(rendered.stdout.splitlines()[-1])
    wrapper = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    process = subprocess.Popen([wrapper, "-db", "-f", told["config"], "-dR"])
    plane = Plane(folder, *ports, told, process, replica, context)
    wait_for(ports[0], process)
    return plane


def wait_for(port, process):
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("HAProxy ended")


def stop(plane):
    plane.process.send_signal(signal.SIGTERM)
    plane.process.wait()


@pytest.fixture(scope="module")
def replica():
    replica = Replica()
    yield replica
    replica.stop()


@pytest.fixture(scope="module")
def plain(short, replica):
    plane = start(short(), replica)
    yield plane
    stop(plane)


@pytest.fixture(scope="module")
def secure(short, replica):
    folder = short()
    cert, key = certificate(folder)
    context = ssl.create_default_context(cafile=str(cert))
    plane = start(folder, replica, context, tls_certificate=cert, tls_key=key)
    yield plane
    stop(plane)


@pytest.fixture(scope="module")
def away(short):
    plane = start(short(), None)
    yield plane
    stop(plane)


def is_our_503(answer, body):
    assert answer.status == 503
    assert answer.getheader("Retry-After") == "1"
    assert answer.getheader("Content-Type") == "application/json"
    assert json.loads(body)["error"]["code"] == "unavailable"


@needs_haproxy
@pytest.mark.parametrize("which", ["plain", "secure"])
def test_the_edited_configuration_is_valid(request, which):
    plane = request.getfixturevalue(which)
    checked = subprocess.run(
        [plane.folder / "haproxy-btray", "-c", "-f", plane.told["config"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "ALERT" not in checked.stderr
    assert Path(plane.told["config"]).read_text().count(MARK) == 1


@needs_haproxy
def test_only_the_front_is_open(plain):
    """All of 127.0.0.0/8 is this machine: another address of it stands for the network."""
    for port in (plain.told["stats"], plain.told["metrics"]):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
    mode = Path(plain.told["socket"]).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o600
    assert plain.folder.stat().st_mode & 0o777 == 0o700
    for file in ("front.secret", "edits.json"):
        assert (plain.folder / file).stat().st_mode & 0o777 == 0o600


@needs_haproxy
def test_requests_pass_with_the_fronts_secret(plain):
    answer, body = plain.ask("GET", "/", headers={FRONT_HEADER: "a client's own"})
    assert answer.status == 200
    secret = (plain.folder / "front.secret").read_text()
    assert len(secret) == 64
    assert json.loads(body)["headers"][FRONT_HEADER] == secret
    assert FRONT_HEADER not in dict(answer.getheaders())


@needs_haproxy
def test_a_replicas_own_503_passes(plain):
    answer, body = plain.ask("POST", "/busy", b"x")
    assert (answer.status, json.loads(body)["error"]["code"]) == (503, "overloaded")


@needs_haproxy
@pytest.mark.parametrize("before", [0, 2])
def test_a_replica_that_dies_in_mid_request_is_a_503_and_no_second_try(plain, before):
    """Also for a client that has asked on its connection before, so that others are in use."""
    plain.replica.seen.clear()
    connection = plain.connection()
    for _ in range(before):
        connection.request("POST", "/", b"x")
        assert json.loads(connection.getresponse().read()) == {"bytes": 1}
    connection.request("POST", "/die", b"x" * 100)
    answer = connection.getresponse()
    is_our_503(answer, answer.read())
    connection.close()
    assert plain.replica.seen == ["/"] * before + ["/die"]
    assert plain.ask("POST", "/", b"x" * 100)[0].status == 200


@needs_haproxy
def test_no_replica_is_a_503(away):
    is_our_503(*away.ask("GET", "/v2/health/ready"))
    is_our_503(*away.ask("POST", "/v1/classify", b"x" * 100))


@needs_haproxy
def test_no_replica_is_unavailable_over_grpc(away):
    channel = grpc.insecure_channel(f"127.0.0.1:{away.grpc_port}")
    with channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/a.B/C")(b"", timeout=30)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@needs_haproxy
def test_headers_that_do_not_come_are_a_408(plain):
    with socket.create_connection(("127.0.0.1", plain.http_port), timeout=30) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        answer = http.client.HTTPResponse(slow)
        answer.begin()
    assert answer.status == 408


@needs_haproxy
def test_what_is_no_http_is_a_400(plain):
    with socket.create_connection(("127.0.0.1", plain.http_port), timeout=30) as odd:
        odd.sendall(b"\x00\x01\x02 what\r\n\r\n")
        answer = http.client.HTTPResponse(odd)
        answer.begin()
    assert answer.status == 400


@needs_haproxy
def test_too_large_a_body_is_refused_before_it_is_sent(plain):
    with socket.create_connection(("127.0.0.1", plain.http_port), timeout=30) as large:
        large.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4097\r\n\r\n")
        answer = http.client.HTTPResponse(large)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "too_large")
    answer, body = plain.ask("POST", "/", b"x" * 4096)
    assert (answer.status, json.loads(body)) == (200, {"bytes": 4096})


@needs_haproxy
def test_https_is_answered_and_http_is_not(secure):
    assert secure.ask("GET", "/")[0].status == 200
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        replace(secure, context=None).ask("GET", "/")


@needs_haproxy
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_tls_is_new_and_offers_http_2(secure):
    context = ssl.create_default_context(cafile=str(secure.folder / "cert.pem"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    raw = socket.create_connection(("127.0.0.1", secure.http_port), timeout=30)
    with context.wrap_socket(raw, server_hostname="localhost") as wrapped:
        assert wrapped.selected_alpn_protocol() == "h2"
        assert wrapped.version() == "TLSv1.3"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    raw = socket.create_connection(("127.0.0.1", secure.http_port), timeout=30)
    with raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw)


@needs_haproxy
def test_grpc_passes_over_tls_with_the_fronts_secret(secure):
    roots = (secure.folder / "cert.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(roots)
    with grpc.secure_channel(f"localhost:{secure.grpc_port}", credentials) as channel:
        call = channel.unary_unary("/a.B/C")
        metadata = dict(json.loads(call(b"", timeout=30, metadata=[(FRONT_HEADER, "mine")])))
    assert metadata[FRONT_HEADER] == (secure.folder / "front.secret").read_text()


@needs_haproxy
def test_two_servers_share_nothing(short):
    first, second = (data_plane_environment(short()).environment for _ in range(2))
    same = {name for name in first if first[name] == second[name] and "DIRECT_INGRESS" not in name}
    assert not any("PATH" in name or "LOC" in name or "_PORT" in name for name in same)
    ports = [first[name] for name in first if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 8


@needs_haproxy
def test_the_longest_folder_has_room_for_a_nodes_sockets(short):
    """As Ray nests them: the runtime folder, a node's id, the name."""
    folder = short()
    node = folder / ("x" * (MAX_RUNTIME_PATH - len(str(folder)) - 1)) / ("0" * 56)
    node.mkdir(parents=True)
    assert len(str(node.parent)) == MAX_RUNTIME_PATH
    port, config = free_port(), folder / "haproxy.cfg"
    config.write_text(
        f"global\n    stats socket {node}/s\ndefaults\n    mode http\n"
        f"frontend a\n    bind 127.0.0.1:{port}\n"
    )
    process = subprocess.Popen([HAPROXY, "-db", "-f", config], stderr=subprocess.DEVNULL)
    wait_for(port, process)
    process.terminate()
    process.wait()
    assert (node / "s").exists()


@needs_haproxy
def test_a_folder_sockets_cannot_be_in_is_told(tmp_path):
    long = tmp_path / ("x" * MAX_RUNTIME_PATH)
    long.mkdir()
    with pytest.raises(UserError, match="too long for sockets; set TMPDIR=/tmp"):
        data_plane_environment(long)


def test_without_haproxy_there_is_a_reason(short, monkeypatch):
    monkeypatch.setattr(dataplane, "_candidate", lambda: None)
    environment, reason = data_plane_environment(short())
    assert environment == {}
    assert "no HAProxy" in reason
    monkeypatch.setattr(dataplane, "_candidate", lambda: "/bin/false")
    assert data_plane_environment(short()).reason == "/bin/false does not run here"


def test_tls_is_never_left_out_in_silence(short, tmp_path, monkeypatch):
    monkeypatch.setattr(dataplane, "_candidate", lambda: None)
    cert, key = certificate(tmp_path)
    with pytest.raises(UserError, match="TLS needs HAProxy"):
        data_plane_environment(short(), tls_certificate=cert, tls_key=key)
    with pytest.raises(UserError, match="belong together"):
        data_plane_environment(short(), tls_certificate=cert)


def test_a_certificate_and_its_key_become_one(tmp_path):
    cert, key = certificate(tmp_path)
    pem = read_certificate(cert, key)
    assert pem.count(b"-----BEGIN") == 2


def test_certificates_that_will_not_do(tmp_path):
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    good, key = certificate(folders[0])
    expired = certificate(folders[1], start=-3, end=-1)
    early = certificate(folders[2], start=1, end=2)
    locked = certificate(folders[3], password=b"secret")
    for files, message in (
        (expired, "expired on"),
        (early, "not valid before"),
        (locked, "has a password"),
        ((good, expired[1]), "not the private key of"),
        ((key, key), "no certificate in PEM form"),
        ((good, good), "no private key in PEM form"),
        ((tmp_path / "none", key), "cannot be read: No such file"),
        ((tmp_path, key), "cannot be read"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_certificate(*files)
        assert "\n" not in str(caught.value)


EDITS = [
    Edit("global", r"log (\S+)", [r"log \1 a", "more"]),
    Edit("frontend a", "bind :1", ["bind 127.0.0.1:1"]),
    Edit("frontend b", "bind :2", ["bind 127.0.0.1:2"], True),
]


def test_an_edit_stays_in_its_section_and_is_done_once():
    text = "global\n    log x\nfrontend a\n    bind :1\n    log x\n"
    edited = edit(text, EDITS)
    assert edited.splitlines()[1:] == [
        "global",
        "    log x a",
        "    more",
        "frontend a",
        "    bind 127.0.0.1:1",
        "    log x",
    ]
    assert edit(edited, EDITS) == edited


@pytest.mark.parametrize(
    "text",
    [
        "",
        "global\n    log x\n",
        "global\n    log x\nfrontend a\n    bind *:1\n",
        "global\n    log x\nfrontend a\n    bind :1\nfrontend b\n    bind [::]:2\n",
    ],
)
def test_a_template_that_has_changed_is_refused(text):
    with pytest.raises(ValueError, match="no line"):
        edit(text, EDITS)


@needs_haproxy
def test_haproxy_is_not_started_with_a_configuration_that_is_not_rays(short):
    folder = short()
    environment = data_plane_environment(folder).environment
    config = folder / "haproxy.cfg"
    config.write_text("listen stats\n  bind *:1\n")
    done = subprocess.run(
        [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("btray: HAProxy is not started: no line")
    assert len(done.stderr.splitlines()) == 1
    assert config.read_text() == "listen stats\n  bind *:1\n"


@needs_haproxy
def test_two_servers_of_one_machine_have_replicas_on_ports_of_their_own(short):
    ports, held = [], []
    for _ in range(2):
        told = data_plane_environment(short()).environment
        for kind in ("HTTP", "GRPC"):
            first, last = (
                int(told[f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT"]) for end in ("MIN", "MAX")
            )
            ports += range(first, last + 1)
            held.append(socket.create_server(("127.0.0.1", first)))  # as a replica would
    assert len(set(ports)) == len(ports) == 2 * dataplane.BLOCK
    for one in held:
        one.close()
