"""`btray serve` behind a certificate: the whole way of HTTP and gRPC, with keys."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import grpc
import pytest

from btray.core.predictor import Predictor
from btray.serve.dataplane import find_haproxy
from btray.serve.proto import classifier_pb2, classifier_pb2_grpc
from tests.ports import free_port
from tests.serve.certificates import certificate

_, WHY_NOT = find_haproxy()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]


class Server:
    """A running `btray serve` with a certificate, and how to ask it."""

    def __init__(self, bundle, folder):
        self.cert, private = certificate(folder)
        self.http, self.grpc, self.log = free_port(), free_port(), folder / "log"
        btray, keys = [sys.executable, "-m", "btray"], folder / "keys.json"
        made = [*btray, "keys", "create", "ward", "--file", keys]
        done = subprocess.run(made, capture_output=True, text=True, check=True)
        self.key = done.stdout.split()[-1]
        command = [*btray, "serve", bundle.uri, "--replicas", "1", "--keys", keys]
        command += ["--http-port", self.http, "--grpc-port", self.grpc]
        command += ["--tls-certificate", self.cert, "--tls-key", private]
        environment = os.environ | {"XDG_CACHE_HOME": str(folder), "RAY_ADDRESS": "local"}
        self.process = subprocess.Popen(
            list(map(str, command)), env=environment, stderr=self.log.open("w"), cwd=folder
        )

    def ask(self, path, data=None, scheme="https", **headers):
        """Return the status and the JSON of an answer."""
        trusted = ssl.create_default_context(cafile=str(self.cert)) if scheme == "https" else None
        url = f"{scheme}://localhost:{self.http}{path}"
        headers = {"Content-Type": "image/png"} | headers
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60, context=trusted) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def wait(self):
        """Wait until it answers."""
        end = time.monotonic() + 240
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.ask("/v2/health/ready")[0] == 200:
                    return
            except OSError:
                pass  # nobody listens yet
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())


@pytest.fixture(scope="module")
def server(tiny_bundle, tmp_path_factory):
    running = Server(tiny_bundle, tmp_path_factory.mktemp("tls"))
    try:
        running.wait()
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(120)


def test_http_answers_behind_the_certificate_and_only_there(server, tiny_bundle, image):
    (expected,) = Predictor(tiny_bundle, "cpu").predict([image])
    status, row = server.ask("/v1/classify", image, **{"X-API-Key": server.key})
    assert (status, row["class"]) == (200, expected.class_name)
    assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    status, refused = server.ask("/v1/classify", image)
    assert (status, refused["error"]["code"]) == (401, "unauthenticated")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"https://localhost:{server.http}/v2/health/live", timeout=60)
    with pytest.raises((OSError, ValueError)):
        server.ask("/v2/health/live", scheme="http")


def test_grpc_answers_behind_the_certificate_and_only_there(server, tiny_bundle, image):
    (expected,) = Predictor(tiny_bundle, "cpu").predict([image])
    request, where = classifier_pb2.ClassifyRequest(image=image), f"localhost:{server.grpc}"
    roots = grpc.ssl_channel_credentials(server.cert.read_bytes())
    with grpc.secure_channel(where, roots) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        metadata = (("authorization", f"Bearer {server.key}"),)
        answer = stub.Classify(request, metadata=metadata, timeout=60)
        assert answer.class_name == expected.class_name
        assert dict(answer.probabilities) == pytest.approx(expected.probabilities, abs=1e-4)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Classify(request, timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(where) as channel, pytest.raises(grpc.RpcError) as plain:
        classifier_pb2_grpc.ClassifierStub(channel).Classify(request, timeout=20)
    assert plain.value.code() is grpc.StatusCode.UNAVAILABLE
