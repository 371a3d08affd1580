import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from btray.errors import UserError
from btray.serve import load_report
from btray.serve.load import TIMEOUT, Plan, Sample, Step, arrivals, run_load, step_at
from btray.serve.load_clients import CLASSIFY, GrpcClient, HttpClient
from btray.serve.load_images import draw_images, read_images
from btray.serve.proto.classifier_pb2 import ClassifyResponse
from btray.serve.proto.classifier_pb2_grpc import (
    ClassifierServicer,
    add_ClassifierServicer_to_server,
)

ANSWER = {"request_id": "1", "class": "glioma"}
IMAGES = [b"first", b"second"]


def answer():
    return web.json_response(ANSWER)


def refuse(status, code):
    return web.json_response({"error": {"code": code, "message": "in words"}}, status=status)


@contextmanager
def serving(classify):
    """Serve a handler, given the number of the request and the request; give its URL."""
    numbers, ready, loop = iter(range(10**9)), threading.Event(), asyncio.new_event_loop()
    ports = []

    async def handle(request):
        return await classify(next(numbers), request)

    async def start():
        app = web.Application()
        app.router.add_post(CLASSIFY, handle)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(site._server.sockets[0].getsockname()[1])
        ready.set()
        return runner

    def work():
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def one_after_another():
    """Return some ten requests over one connection, however slow the machine is."""
    return Plan.open_loop([Step(20, 0.5)], connections=1, warmup=0)


def test_every_request_of_a_closed_loop_is_a_sample():
    seen = []

    async def classify(number, request):
        seen.append((await request.read(), request.headers.get("Authorization"), request.path_qs))
        return answer()

    with serving(classify) as url:
        samples = run_load(HttpClient(url, IMAGES, "secret", "my model"), Plan(2, 1.0, warmup=0))
    assert len(samples) == len(seen) >= 2
    assert {body for body, _, _ in seen} == set(IMAGES)
    assert {row[1:] for row in seen} == {("Bearer secret", f"{CLASSIFY}?model=my%20model")}
    assert not any(sample.reason for sample in samples)
    assert all(0 <= sample.due <= sample.begun <= sample.ended for sample in samples)


@pytest.mark.parametrize(
    "plan", [Plan(3, 1.0, warmup=0), Plan.open_loop([Step(300, 0.5)], 3, warmup=0)]
)
def test_as_many_connections_as_asked_for_and_no_more(plan):
    open_now, most, all_three = set(), [], asyncio.Barrier(3)

    async def classify(number, request):
        open_now.add(number)
        most.append(len(open_now))
        if number < 3:
            await all_three.wait()
        open_now.discard(number)
        return answer()

    with serving(classify) as url:
        samples = run_load(HttpClient(url, IMAGES), plan)
    assert max(most) == 3
    assert not any(sample.reason for sample in samples)


def test_errors_are_counted_by_status_and_code():
    async def classify(number, request):
        kinds = [answer(), refuse(503, "overloaded"), refuse(429, "too_many_requests")]
        return [*kinds, web.Response(status=502), web.json_response({})][number % 5]

    plan = Plan.open_loop([Step(100, 0.5)], warmup=0)
    with serving(classify) as url:
        summary = load_report.summarise(url, plan, run_load(HttpClient(url, IMAGES), plan))
    total, errors = summary["requests"], summary["errors"]
    assert total == len(arrivals(plan))
    assert set(errors) == {
        "503 overloaded",
        "429 too_many_requests",
        "502",
        "200 not an answer",
    }
    assert summary["answered"] == total - sum(errors.values()) == -(-total // 5)
    assert summary["error_percent"] == pytest.approx(100 * sum(errors.values()) / total)


def test_a_connection_that_breaks_is_an_error_and_the_next_request_connects_again():
    async def classify(number, request):
        if number % 2:
            request.transport.abort()
        return answer()

    with serving(classify) as url:
        samples = run_load(HttpClient(url, IMAGES), one_after_another())
    reasons = [sample.reason for sample in samples]
    assert reasons[0] == ""
    assert reasons[1] in ("connection reset", "connection closed")
    assert reasons[2] == ""


def test_answers_that_end_the_connection_and_chunked_ones_are_answers():
    async def classify(number, request):
        response = web.StreamResponse()
        if number % 2:
            response.force_close()
        response.enable_chunked_encoding()
        await response.prepare(request)
        body = json.dumps(ANSWER).encode()
        await response.write(body[:9])
        await response.write(body[9:])
        return response

    with serving(classify) as url:
        samples = run_load(HttpClient(url, IMAGES), one_after_another())
    assert len(samples) > 4
    assert not any(sample.reason for sample in samples)


def test_a_request_without_an_answer_is_given_up():
    async def classify(number, request):
        if number == 1:
            await asyncio.sleep(60)
        return answer()

    plan = Plan.open_loop([Step(20, 0.5)], connections=1, warmup=0, timeout=2)
    with serving(classify) as url:
        samples = run_load(HttpClient(url, IMAGES), plan)
    given_up = [sample for sample in samples if sample.reason]
    assert len(samples) == len(arrivals(plan))
    assert {sample.reason for sample in given_up} == {TIMEOUT}
    assert all(sample.latency >= 2 for sample in given_up)


def test_the_arrivals_are_poisson_by_step_and_by_seed():
    plan = Plan.open_loop([Step(100, 20), Step(0, 5), Step(400, 10)], warmup=2, seed=1)
    times = arrivals(plan)
    assert (np.diff(times) >= 0).all()
    assert plan.duration == 35
    counts = [np.sum((times >= low) & (times < high)) for low, high in ((-2, 0), (0, 20))]
    assert counts == [pytest.approx(200, abs=60), pytest.approx(2000, abs=180)]
    assert not np.any((times >= 20) & (times < 25))
    gaps = np.diff(times[times >= 25])
    assert len(gaps) == pytest.approx(4000, abs=260)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as of an exponential distribution
    assert np.array_equal(times, arrivals(plan))
    other = Plan.open_loop(plan.steps, warmup=2, seed=2)
    assert not np.array_equal(times[:9], arrivals(other)[:9])
    assert [step_at(plan, second) for second in (0, 20, 34.9, 35)] == [*plan.steps, None]


def test_an_open_loop_asks_at_the_arrivals():
    async def classify(number, request):
        return answer()

    plan = Plan.open_loop([Step(50, 0.4), Step(100, 0.2)], warmup=0.2)
    with serving(classify) as url:
        samples = run_load(HttpClient(url, IMAGES), plan)
    assert sorted(sample.due for sample in samples) == arrivals(plan).tolist()
    assert all(sample.begun >= sample.due for sample in samples)
    summary = load_report.summarise("url", plan, samples)
    assert summary["requests"] == np.sum(arrivals(plan) >= 0)


def test_a_server_that_stalls_once_shows_in_the_percentiles():
    """A closed loop would ask once while the server stalls, and call all the rest fast."""

    async def classify(number, request):
        if number == 50:
            time.sleep(0.6)
        return answer()

    plan = Plan.open_loop([Step(100, 2)], warmup=0)
    with serving(classify) as url:
        samples = run_load(HttpClient(url, IMAGES), plan)
    figures = load_report.latencies(samples)
    assert figures["p90"] > 100
    assert figures["p99"] > 400
    assert sum(sample.latency > 0.1 for sample in samples) > 20


def test_refused_requests_and_absent_servers_are_the_users_mistake():
    async def classify(number, request):
        return refuse(401, "unauthenticated")

    plan = Plan(1, 0.1, warmup=0.1)
    with serving(classify) as url:
        with pytest.raises(UserError, match="401 unauthenticated: in words"):
            run_load(HttpClient(url, IMAGES), plan)
        with pytest.raises(UserError, match="/nowhere: 404"):
            run_load(HttpClient(f"{url}/nowhere", IMAGES), plan)
    with pytest.raises(UserError, match="connection refused"):
        run_load(HttpClient(url, IMAGES), plan)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://h:99999", "http://u:secret@h"]
)
def test_what_is_no_url(url):
    with pytest.raises(UserError) as raised:
        HttpClient(url, IMAGES)
    assert "secret" not in str(raised.value)


def test_urls():
    assert HttpClient("http://h", IMAGES).url == f"http://h{CLASSIFY}"
    assert HttpClient("http://h:1/", IMAGES).url == f"http://h:1{CLASSIFY}"
    assert HttpClient("http://h/infer?a=b", IMAGES).url == "http://h/infer?a=b"
    assert GrpcClient("h:1", IMAGES).target == "h:1"
    assert GrpcClient("grpc://[::1]", IMAGES).target == "[::1]:9000"


def test_a_key_that_would_add_a_header_is_refused():
    with pytest.raises(UserError, match="--key"):
        HttpClient("http://h", IMAGES, "a\r\nX-Other: b")


class Classifier(ClassifierServicer):
    def __init__(self):
        self.seen = []

    def Classify(self, request, context):  # noqa: N802 - the protocol's name
        self.seen.append((request.image, request.model, dict(context.invocation_metadata())))
        number = len(self.seen) - 1
        if number % 3 == 1:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        response = ClassifyResponse(class_name="glioma")
        if number % 3 == 2:
            response.error.code = "truncated"
        return response


@pytest.fixture
def classifier():
    server, servicer = grpc.server(ThreadPoolExecutor(1)), Classifier()
    add_ClassifierServicer_to_server(servicer, server)
    servicer.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer
    server.stop(None).wait()


def test_grpc(classifier):
    plan = Plan.open_loop([Step(60, 0.5)], connections=4, warmup=0)
    client = GrpcClient(f"127.0.0.1:{classifier.port}", IMAGES, "secret", "other")
    summary = load_report.summarise(client.url, plan, run_load(client, plan))
    images, models, metadata = zip(*classifier.seen, strict=True)
    assert summary["requests"] == len(images) == len(arrivals(plan))
    assert set(images) == set(IMAGES)
    assert set(models) == {"other"}
    assert {row["authorization"] for row in metadata} == {"Bearer secret"}
    assert set(summary["errors"]) == {"RESOURCE_EXHAUSTED", "truncated"}
    assert summary["answered"] == -(-len(images) // 3)


def test_grpc_where_nothing_listens():
    with pytest.raises(UserError, match="UNAVAILABLE"):
        run_load(GrpcClient("127.0.0.1:1", IMAGES), Plan(1, 0.1, warmup=0.1))


def made(latencies_ms, reason="", due=0.0):
    return [Sample(due, due, due + latency / 1000, reason) for latency in latencies_ms]


def test_percentiles_are_samples_and_errors_are_apart():
    plan = Plan.open_loop([Step(500, 2)], warmup=1)
    samples = [
        *made(range(1, 1001)),
        *made([9999], "503", due=1.5),
        *made([5000], due=-0.5),  # the warm-up's
    ]
    summary = load_report.summarise("url", plan, samples)
    assert summary["latency_ms"] == {
        "mean": 500.5, "p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99.9": 999, "max": 1000,
    }  # fmt: skip
    assert (summary["requests"], summary["answered"]) == (1001, 1000)
    assert summary["errors"] == {"503": 1}
    assert [row["requests"] for row in summary["seconds"]] == [1000, 1]
    assert [row["p99_ms"] for row in summary["seconds"]] == [990, None]
    assert summary["requests_per_second"] == 500


def test_the_rate_is_of_answers_in_the_time_measured():
    late, warm = made([3000]), made([700], due=-0.5)
    summary = load_report.summarise("url", Plan(1, 2), [*late, *warm])
    assert summary["requests"] == 1
    assert summary["requests_per_second"] == 0.5


def test_checks():
    summary = load_report.summarise("url", Plan(1, 10), [*made([10] * 99), *made([1], "503")])
    checks = load_report.parse_checks("p99>50ms, p50 > 5ms, max<=0.01s, errors>0.5%, errors>1")
    found = [check.finding(summary) for check in checks]
    assert [bool(finding) for finding in found] == [False, True, True, True, False]
    assert found[3] == "errors 1% (to fail on: >0.5%)"
    (rate,) = load_report.parse_checks("rate<10")
    assert rate.finding(summary) == "rate 9.9/s (to fail on: <10/s)"


def test_a_latency_check_finds_that_there_is_no_answer():
    summary = load_report.summarise("url", Plan(1, 10), made([1], "503"))
    (check,) = load_report.parse_checks("p99.9>1s")
    assert "no answer" in check.finding(summary)


@pytest.mark.parametrize("text", ["p98>1ms", "p99=1ms", "p99>50", "errors>5ms", "rate<5%", "x"])
def test_what_is_no_check(text):
    with pytest.raises(UserError, match="--fail-on"):
        load_report.parse_checks(text)


def test_what_is_written(tmp_path):
    plan = Plan.open_loop([Step(5, 2)], warmup=0)
    for name, samples in (("some", made([1, 30, 500])), ("none", made([1], "503"))):
        summary = load_report.summarise("url", plan, samples)
        paths = load_report.write(tmp_path / name, summary, samples)
        assert [path.name for path in paths] == ["load.json", "latency.png", "timeline.png"]
        assert json.loads(paths[0].read_text()) == json.loads(json.dumps(summary))
        for path in paths[1:]:
            with Image.open(path) as picture:
                assert picture.size[0] == 960
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        load_report.write(tmp_path / "file", summary, samples)


def test_drawn_images_are_slices_of_a_kind_and_the_same_again():
    images = draw_images(3)
    assert images == draw_images(3)
    assert len(set(images)) == 3
    assert all(5_000 < len(image) < 100_000 for image in images)


def test_images_that_cannot_be_sent(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match="empty"):
        read_images([tmp_path / "empty.png"])
    with pytest.raises(UserError, match="No such file"):
        read_images([tmp_path / "absent.png"])
