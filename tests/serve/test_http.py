import asyncio
import io
import json
import zlib

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from btray.serve.auth import AuthConfig
from btray.serve.config import ModelServed
from btray.serve.http import build_app
from btray.serve.keys import Limits, create_key
from tests.serve.fakes import NAMES, FakeEngine

CLASSIFY = "/v1/classify"


def talk(service, conversation):
    """Run a conversation with the application of a configured service."""

    async def run():
        await service.models.configure(service.served)
        app = build_app(service)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await conversation(client)

    return asyncio.run(run())


def ask(service, method, path, **options):
    return talk(service, lambda client: client.request(method, path, **options))


def check_error(response, status, code):
    assert response.status_code == status, response.text
    body = response.json()
    if response.url.path.startswith("/v2"):  # as the Open Inference Protocol has it
        body["error"] = {"code": body.pop("code"), "message": body["error"]}
    assert set(body) == {"error", "request_id"}
    assert body["error"]["code"] == code
    assert body["error"]["message"]
    assert isinstance(body["error"]["message"], str)
    assert body["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("declared", ["image/png", "application/octet-stream", None])
def test_an_image_is_classified_by_its_bytes_whatever_it_is_called(
    make_service, picture, kind, declared
):
    service = make_service()
    headers = {"content-type": declared} if declared else {}
    response = ask(service, "POST", CLASSIFY, content=picture(4, kind), headers=headers)
    assert response.status_code == 200
    row = response.json()
    assert row["class"] == NAMES[0]
    assert row["probabilities"] == {NAMES[0]: 1.0, NAMES[1]: 0.0, NAMES[2]: 0.0, NAMES[3]: 0.0}
    assert (row["prediction_set"], row["abstain"], row["ood_score"]) == ([NAMES[0]], False, 4.0)
    assert row["model"] == {"name": "btray", "version": "v1"}
    assert row["request_id"] == response.headers["x-request-id"]
    assert service.monitor.requests[0][:3] == ("http", CLASSIFY, "200")


def test_several_files_have_a_row_each_in_their_order(make_service, picture):
    files = [("file", (f"{n}.png", picture(n), "image/png")) for n in (1, 2, 3)]
    files.insert(1, ("file", ("broken.png", b"no image", "image/png")))
    response = ask(make_service(), "POST", CLASSIFY, files=files)
    assert response.status_code == 200, response.text
    rows = response.json()["results"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row.get("class") for row in rows] == [NAMES[1], None, NAMES[2], NAMES[3]]
    assert rows[1]["error"]["code"] == "not_an_image"


def test_a_request_id_comes_back_unless_it_could_forge_a_log(make_service, picture):
    service, image = make_service(), picture()

    async def conversation(client):
        ids = ("study-7.slice_3", "x" * 129, 'a"b', "")
        return [
            (await client.post(CLASSIFY, content=image, headers={"x-request-id": given})).json()
            for given in ids
        ]

    told = [row["request_id"] for row in talk(service, conversation)]
    assert told[0] == "study-7.slice_3"
    assert all(len(made) == 32 for made in told[1:])
    assert len(set(told)) == 4


def test_every_answer_has_secure_headers(make_service):
    for path in ("/", "/docs", "/v2/health/live", "/nowhere", CLASSIFY):
        headers = ask(make_service(), "GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


def bomb():
    """A PNG of 20,000 x 20,000 black pixels in 400 kB."""
    import struct

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(20001) * 20000, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "empty"),
        (b"no image", 415, "not_an_image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), 415, "not_an_image"),
    ],
)
def test_bytes_that_are_no_slice_are_refused(make_service, content, status, code):
    check_error(ask(make_service(), "POST", CLASSIFY, content=content), status, code)


def test_a_truncated_and_a_bomb_image_are_refused(make_service, picture):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    for image, status, code in (
        (buffer.getvalue()[:-200], 422, "unreadable"),
        (picture(size=(8, 8)), 422, "too_small"),
        (bomb(), 413, "too_large"),
    ):
        check_error(ask(make_service(), "POST", CLASSIFY, content=image), status, code)


@pytest.mark.parametrize("kind", ["text/html", "application/json", "video/mp4"])
def test_content_that_is_declared_as_something_else_is_refused(make_service, picture, kind):
    response = ask(
        make_service(), "POST", CLASSIFY, content=picture(), headers={"content-type": kind}
    )
    check_error(response, 415, "unsupported_media_type")


def test_a_body_over_the_limit_is_refused_before_it_is_read(make_service):
    read = []

    async def run():
        service = make_service(body_bytes=2048)
        await service.models.configure(service.served)
        app, sent = build_app(service), []

        async def receive():
            read.append(1)
            return {"type": "http.request", "body": bytes(1024), "more_body": True}

        async def send(message):
            sent.append(message)

        def scope(*headers):
            return {
                "type": "http",
                "method": "POST",
                "path": CLASSIFY,
                "raw_path": b"",
                "query_string": b"",
                "headers": list(headers),
                "http_version": "1.1",
                "scheme": "http",
                "server": ("test", 80),
                "client": ("test", 1),
            }

        await app(scope((b"content-length", b"100000000")), receive, send)
        declared, count = sent[0]["status"], len(read)
        sent.clear()
        await app(scope(), receive, send)  # chunked: its length is not told
        return declared, count, sent[0]["status"], len(read)

    assert asyncio.run(run()) == (413, 0, 413, 3)


def test_too_many_or_too_large_images_are_refused(make_service, picture):
    files = [("file", ("a.png", picture(), "image/png"))] * 5
    check_error(ask(make_service(images=4), "POST", CLASSIFY, files=files), 413, "too_large")
    response = ask(make_service(image_bytes=1024), "POST", CLASSIFY, content=bytes(1500))
    check_error(response, 413, "too_large")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (b"abc", "multipart/form-data"),
        (
            b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_forms_that_are_broken_or_hold_no_file_are_refused(make_service, body, kind):
    response = ask(make_service(), "POST", CLASSIFY, content=body, headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_request", "empty")


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("?model=other", {}, 404, "not_found"),
        ("?version=v9", {}, 404, "not_found"),
        ("?explain=lime", {}, 400, "invalid_request"),
        ("", {"x-btray-timeout-seconds": "soon"}, 400, "invalid_request"),
        ("", {"x-btray-timeout-seconds": "nan"}, 400, "invalid_request"),
        ("", {"x-btray-timeout-seconds": "0.05"}, 400, "invalid_request"),
    ],
)
def test_what_makes_no_sense_is_told(make_service, picture, query, headers, status, code):
    response = ask(make_service(), "POST", CLASSIFY + query, content=picture(), headers=headers)
    check_error(response, status, code)


def test_a_client_may_ask_for_an_answer_in_less_time(make_service, picture):
    service, image = make_service(), picture()

    async def conversation(client):
        service.engines["v1"].go.clear()
        response = await client.post(
            CLASSIFY, content=image, headers={"x-btray-timeout-seconds": "0.1"}
        )
        service.engines["v1"].go.set()
        return response

    check_error(talk(service, conversation), 504, "deadline_exceeded")


def test_explanations_can_be_turned_off(make_service, picture):
    response = ask(
        make_service(explain=False), "POST", f"{CLASSIFY}?explain=gradcam", content=picture()
    )
    check_error(response, 501, "not_offered")


def test_unknown_paths_and_methods_are_json_too(make_service):
    check_error(ask(make_service(), "GET", "/nowhere"), 404, "not_found")
    check_error(ask(make_service(), "GET", CLASSIFY), 405, "method_not_allowed")
    check_error(ask(make_service(), "GET", "/v2/models/other"), 404, "not_found")


def test_a_fault_of_the_engine_is_told_without_its_traceback(make_service, picture):
    class Broken(FakeEngine):
        def prepare(self, data):
            raise MemoryError("secret path /srv/models")

    response = ask(make_service(engine=Broken), "POST", CLASSIFY, content=picture())
    check_error(response, 500, "internal")
    assert "secret" not in response.text


def test_more_than_may_wait_is_told_to_come_again(make_service, picture):
    service, image = make_service(waiting=2), picture()

    async def conversation(client):
        service.engines["v1"].go.clear()
        first = [asyncio.create_task(client.post(CLASSIFY, content=image)) for _ in range(2)]
        await asyncio.sleep(0.2)
        refused = await client.post(CLASSIFY, content=image)
        service.engines["v1"].go.set()
        return refused, [r.status_code for r in await asyncio.gather(*first)]

    refused, statuses = talk(service, conversation)
    check_error(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert statuses == [200, 200]


def test_keys_are_asked_for_everywhere_but_where_no_data_is(make_service, picture, tmp_path):
    key = create_key(tmp_path / "keys.json", "ward")
    auth, image = AuthConfig(keys_file=str(tmp_path / "keys.json")), picture()

    async def conversation(client):
        found = {}
        for path in ("/", "/docs", "/openapi.json", "/v2/health/ready", "/web/style.css"):
            found[path] = (await client.get(path)).status_code
        for path in ("/v1/models", "/v2", "/v2/models/btray", "/metrics"):
            response = await client.get(path)
            check_error(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"].startswith("Bearer")
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
            response = await client.post(CLASSIFY, content=image, headers=headers)
            assert response.status_code == 200
        wrong = {"authorization": f"Bearer {key[:-1]}x"}
        check_error(
            await client.post(CLASSIFY, content=image, headers=wrong), 401, "unauthenticated"
        )
        return found

    found = talk(make_service(auth=auth), conversation)
    assert set(found.values()) == {200}


def test_a_key_above_its_rate_is_told_when_to_come_again(make_service, picture, tmp_path):
    limits = Limits(requests_per_second=0.1, burst=1)
    key = create_key(tmp_path / "keys.json", "ward", limits=limits)
    auth, image = AuthConfig(keys_file=str(tmp_path / "keys.json")), picture()

    async def conversation(client):
        headers = {"x-api-key": key}
        await client.post(CLASSIFY, content=image, headers=headers)
        return await client.post(CLASSIFY, content=image, headers=headers)

    response = talk(make_service(auth=auth), conversation)
    check_error(response, 429, "too_many_requests")
    assert 1 <= int(response.headers["retry-after"]) <= 10


def test_the_open_inference_protocol_is_spoken(make_service, picture):
    import base64

    service = make_service()
    encoded = [base64.b64encode(picture(n)).decode() for n in (1, 2)]
    body = {
        "id": "7",
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [2],
                "data": encoded,
                "parameters": {"encoding": "base64"},
            }
        ],
        "outputs": [{"name": "class"}, {"name": "logits"}],
    }

    async def conversation(client):
        return (
            await client.get("/v2"),
            await client.get("/v2/models/btray/versions/v1"),
            await client.get("/v2/models/btray/ready"),
            await client.post("/v2/models/btray/infer", json=body),
            await client.post("/v2/models/btray/infer", json={"inputs": []}),
        )

    server, model, ready, answer, wrong = talk(service, conversation)
    assert server.json()["name"] == "btray"
    assert model.json()["inputs"][0]["name"] == "image"
    assert ready.json()["ready"] is True
    told = answer.json()
    assert (told["id"], told["model_name"], told["model_version"]) == ("7", "btray", "v1")
    assert told["outputs"][0]["data"] == [NAMES[1], NAMES[2]]
    check_error(wrong, 400, "invalid_request")


def test_a_bad_image_in_an_inference_request_refuses_it_whole(make_service):
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["no image"]}]}
    response = ask(make_service(), "POST", "/v2/models/btray/infer", json=body)
    check_error(response, 415, "not_an_image")
    assert "image 0" in response.json()["error"]


def test_models_are_listed_and_the_canary_and_the_shadow_are_asked(make_service, picture):
    served = ModelServed(
        name="btray", bundle="a", canary={"bundle": "b", "percent": 50}, shadow="c"
    )
    service, image = make_service(served), picture(3)

    async def conversation(client):
        models = (await client.get("/v1/models")).json()["models"]
        seen = [
            (await client.post(CLASSIFY, content=image)).json()["model"]["version"]
            for _ in range(40)
        ]
        while len(service.monitor.shadows) < 40:
            await asyncio.sleep(0.01)
        return models, seen

    models, seen = talk(service, conversation)
    assert models[0]["versions"] == ["v1", "v2", "v3"]
    assert models[0]["canary_percent"] == 50
    assert set(seen) == {"v1", "v2"}
    assert set(service.monitor.shadows) == {("btray", "v3", True)}


def test_the_openapi_document_describes_every_route(make_service):
    document = ask(make_service(), "GET", "/openapi.json").json()
    assert {"/v1/classify", "/v1/models", "/v2", "/v2/models/{name}/infer"} <= set(
        document["paths"]
    )
    page = ask(make_service(), "GET", "/docs").text
    assert "<script" not in page
    assert all(path in page for path in document["paths"])
    assert json.dumps(document)


def scope_of(path, root_path="", headers=()):
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": root_path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("test", 80),
        "client": ("test", 1),
    }


def test_a_body_that_does_not_come_ends_at_the_deadline(make_service):
    async def run():
        service, sent = make_service(deadline_s=0.05), []
        await service.models.configure(service.served)

        async def receive():
            await asyncio.sleep(0.02)  # a byte now and then
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message):
            sent.append(message)

        await build_app(service)(scope_of(CLASSIFY), receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]

    assert asyncio.run(run()) == (504, "deadline_exceeded")


def test_a_mount_point_named_like_an_open_path_opens_nothing(make_service, tmp_path):
    create_key(tmp_path / "keys.json", "ward")
    auth = AuthConfig(keys_file=str(tmp_path / "keys.json"))

    async def run():
        service, sent = make_service(auth=auth), []
        await service.models.configure(service.served)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        await build_app(service)(scope_of("/web/v1/models", "/web"), receive, send)
        return sent[0]["status"]

    assert asyncio.run(run()) == 401


def test_too_much_json_is_refused_before_it_is_parsed(make_service):
    body = b'{"inputs": [' + b" " * (16 * 2**20) + b"]}"
    check_error(
        ask(make_service(), "POST", "/v2/models/btray/infer", content=body), 413, "too_large"
    )


def test_a_model_whose_answers_cannot_be_explained_says_so(make_service, picture, monkeypatch):
    from btray.errors import UserError
    from btray.serve import explaining

    def refuse(*_):
        raise UserError("/srv/secret: no feature map")

    monkeypatch.setattr(explaining, "overlay", refuse)
    response = ask(make_service(), "POST", f"{CLASSIFY}?explain=gradcam", content=picture())
    check_error(response, 501, "not_offered")
    assert "secret" not in response.text
