"""One real server, as `btray serve` starts it: HAProxy, a replica, HTTP and gRPC."""

import gzip
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image
from typer.testing import CliRunner

from btray.cli import app
from btray.core.predictor import Predictor
from btray.serve.proto import classifier_pb2, classifier_pb2_grpc, inference_pb2, inference_pb2_grpc
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


class Collector(ThreadingHTTPServer):
    """An OpenTelemetry collector that keeps the spans it is sent."""

    def __init__(self):
        self.spans = []
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            sent = ExportTraceServiceRequest.FromString(body)
            self.server.spans += [
                span
                for resource in sent.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass


class Server:
    """A running `btray serve` and how to ask it."""

    def __init__(self, folder, bundles):
        self.bundles, self.tracking, self.log = bundles, folder / "runs", folder / "log"
        for bundle in bundles:
            run("models", "register", bundle.uri, "--name", "served", "--tracking", self.tracking)
        self.promote(1)
        self.collector = Collector()
        self.key = run("keys", "create", "ward", "--file", folder / "keys.json").split()[-1]
        self.http, self.grpc = free_port(), free_port()
        command = [sys.executable, "-m", "btray", "serve", "models:/served@champion"]
        command += ["--http-port", self.http, "--grpc-port", self.grpc, "--replicas", "2"]
        command += ["--keys", folder / "keys.json", "--tracking", self.tracking]
        environment = os.environ | {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_ADDRESS": "local",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.collector.server_port}",
        }
        self.process = subprocess.Popen(
            list(map(str, command)), env=environment, stderr=self.log.open("w"), cwd=folder
        )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc}")

    def promote(self, version):
        run("models", "promote", "served", version, "--force", "--tracking", self.tracking)

    def until(self, condition, seconds=240):
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def ready(self):
        try:
            return self.ask("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def ask(self, path, data=None, **headers):
        """Return the status and the JSON of an answer."""
        headers = {"X-API-Key": self.key, "Content-Type": "image/png"} | headers
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def replicas(self):
        """Return the processes of the replicas."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if "ServeReplica" in process.name()]


@pytest.fixture(scope="module")
def server(make_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    bundles = [make_bundle(folder / "a"), make_bundle(folder / "b", name="other")]
    running = Server(folder, bundles)
    try:
        running.until(running.ready)
        yield running
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(120)
        running.collector.shutdown()


@pytest.fixture(scope="module")
def expected(server, image):
    """What `btray predict` answers."""
    (prediction,) = Predictor(server.bundles[0], "cpu").predict([image])
    return prediction


def test_a_request_is_traced_below_its_callers_span(server, image):
    caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    def traced():
        """Return a span of btray's and the one around it, once both have come.

        Ask again until then: Ray's own proxy, which is there until a replica is, drops the parent.
        """
        server.ask("/v1/classify", image, traceparent=f"00-{'-'.join(caller)}-01")
        sent = [span for span in server.collector.spans if span.trace_id.hex() == caller[0]]
        outer = {span.span_id: span for span in sent}
        inner = [s for s in sent if s.name == "classify" and s.parent_span_id in outer]
        return [(span, outer[span.parent_span_id]) for span in inner]

    server.until(traced, seconds=60)
    own, outer = traced()[0]
    told = {item.key: item.value for item in own.attributes}
    assert told["version"].string_value in {bundle.version for bundle in server.bundles}
    assert told["images"].int_value == 1
    assert outer.name.startswith("replica_handle_request")
    assert outer.parent_span_id.hex() == caller[1]
    sent = b"".join(span.SerializeToString() for span in server.collector.spans)
    assert server.key.encode() not in sent


def test_a_request_whose_caller_does_not_trace_is_not_traced(server, image):
    calls = {"00": "1" * 32, "01": "2" * 32}

    def traced():
        for flags, trace in calls.items():
            server.ask("/v1/classify", image, traceparent=f"00-{trace}-b7ad6b7169203331-{flags}")
        return {span.trace_id.hex() for span in server.collector.spans} & set(calls.values())

    server.until(traced, seconds=60)
    assert traced() == {calls["01"]}
    own = [span for span in server.collector.spans if span.name == "classify"]
    assert all(span.parent_span_id for span in own)


def credentials(server):
    return (("authorization", f"Bearer {server.key}"),)


def test_http_and_grpc_answer_as_predict_does(server, image, expected):
    status, row = server.ask("/v1/classify", image)
    assert (status, row["class"]) == (200, expected.class_name)
    assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    assert row["model"] == {"name": "btray", "version": server.bundles[0].version}
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    metadata = credentials(server)
    request = classifier_pb2.ClassifyRequest(image=image, explain=True)
    answer = stub.Classify(request, metadata=metadata)
    assert dict(answer.probabilities) == pytest.approx(row["probabilities"], abs=1e-9)
    assert Image.open(io.BytesIO(answer.explanation_png)).format == "PNG"
    series = classifier_pb2.ClassifySeriesRequest(images=[image, b"none", image])
    told = list(stub.ClassifySeries(series, metadata=metadata))
    assert [(m.index, m.class_name, m.error.code) for m in told] == [
        (0, row["class"], ""),
        (1, "", "not_an_image"),
        (2, row["class"], ""),
    ]
    asked = (classifier_pb2.ClassifyRequest(image=i) for i in (image, b"", image))
    told = list(stub.ClassifyStream(asked, metadata=metadata))
    assert [(m.index, m.error.code) for m in told] == [(0, ""), (1, "empty"), (2, "")]


def test_the_open_inference_protocol_over_grpc(server, image, expected):
    stub, metadata = (
        inference_pb2_grpc.GRPCInferenceServiceStub(server.channel),
        credentials(server),
    )
    assert stub.ServerLive(inference_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(inference_pb2.ServerReadyRequest()).ready
    ready = inference_pb2.ModelReadyRequest(name="btray")
    assert stub.ModelReady(ready, metadata=metadata).ready
    tensor = inference_pb2.ModelInferRequest.InferInputTensor
    request = inference_pb2.ModelInferRequest(
        model_name="btray",
        inputs=[tensor(name="image", datatype="BYTES", shape=[1])],
        raw_input_contents=[len(image).to_bytes(4, "little") + image],
        outputs=[inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")],
    )
    answer = stub.ModelInfer(request, metadata=metadata)
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    assert found == pytest.approx(list(expected.probabilities.values()), abs=1e-4)
    checked = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    watched = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()


def code_of(call):
    with pytest.raises(grpc.RpcError) as told:
        call()
    return told.value.code()


def test_what_is_wrong_has_its_status_on_both_doors(server, image):
    assert server.ask("/v1/classify", image, **{"X-API-Key": "no"})[0] == 401
    assert server.ask("/v1/classify?model=none", image)[0] == 404
    assert server.ask("/v1/classify", b"none")[0] == 415
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    request, codes = classifier_pb2.ClassifyRequest, grpc.StatusCode
    metadata = credentials(server)
    assert code_of(lambda: stub.Classify(request(image=image))) is codes.UNAUTHENTICATED
    other = request(image=image, model="none")
    assert code_of(lambda: stub.Classify(other, metadata=metadata)) is codes.NOT_FOUND
    damaged = request(image=b"none")
    assert code_of(lambda: stub.Classify(damaged, metadata=metadata)) is codes.INVALID_ARGUMENT
    late = request(image=image, explain=True)
    assert code_of(lambda: stub.Classify(late, metadata=metadata, timeout=0.001)) is (
        codes.DEADLINE_EXCEEDED
    )


def test_a_body_of_100_mb_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.http), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: here\r\nContent-Length: 100000000\r\n\r\n"
        )
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_headers_that_never_end_are_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.http), timeout=60) as connection:
        connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: here\r\nX-Slow: ")
        assert b" 408 " in connection.recv(4096).splitlines()[0]


def test_a_replica_cannot_be_asked_past_the_front_door(server, image):
    ports = {
        connection.laddr.port
        for replica in server.replicas()
        for connection in replica.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    statuses = set()
    for port in ports:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/classify", image, {"X-API-Key": server.key}
        )
        try:
            statuses.add(urllib.request.urlopen(request, timeout=10).status)
        except urllib.error.HTTPError as error:
            statuses.add(error.code)
        except (OSError, http.client.HTTPException):  # not HTTP
            continue
    assert statuses == {403}


class Load:
    """Clients that ask all the time, and what they were answered."""

    def __init__(self, server, image, clients=6):
        self.server, self.image, self.answers = server, image, []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def ask(self):
        while not self.over.is_set():
            self.answers.append(self.server.ask("/v1/classify", self.image))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_a_promotion_and_a_rollback_take_effect_under_load_without_a_failure(server, image):
    first, second = (bundle.version for bundle in server.bundles)

    def answers_with(version):
        return lambda: server.ask("/v1/classify", image)[1]["model"]["version"] == version

    with Load(server, image) as load:
        server.promote(2)
        server.until(answers_with(second))
        run("models", "rollback", "served", "--tracking", server.tracking)
        server.until(answers_with(first))
    assert {status for status, _ in load.answers} == {200}
    assert {row["model"]["version"] for _, row in load.answers} == {first, second}
    classes = {(row["model"]["version"], row["class"]) for _, row in load.answers}
    assert len(classes) == 2  # the same image, the same answer


def test_a_killed_replica_costs_at_most_answers_to_ask_again(server, image, expected):
    assert len(server.replicas()) == 2
    with Load(server, image) as load:
        time.sleep(1)
        server.replicas()[0].kill()
        server.until(lambda: len(server.replicas()) == 2)
        time.sleep(2)
    statuses = [status for status, _ in load.answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) <= 6  # what each client had in work
    assert {row["class"] for status, row in load.answers if status == 200} == {expected.class_name}
    assert {row["error"]["code"] for status, row in load.answers if status == 503} <= {
        "unavailable"
    }


def test_metrics_are_there_for_prometheus(server, image):
    server.ask("/v1/classify", image)

    def counted():
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.http}/metrics", headers={"X-API-Key": server.key}
        )
        page = urllib.request.urlopen(request, timeout=10).read().decode()
        return "ray_btray_requests_total{" in page and "ray_btray_answers_total{" in page

    server.until(counted, 60)
    assert "Traceback" not in server.log.read_text()


def test_the_end_is_clean(server):
    """Comes last: stops the server, with a request in work."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    assert "Traceback" not in server.log.read_text()
