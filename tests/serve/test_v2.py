import base64
import json
import pickle
import struct
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btray.serve import v2
from btray.serve.proto import inference_pb2 as pb
from btray.version import __version__

SIZE = 4
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
CARD = SimpleNamespace(class_names=CLASSES, image=SimpleNamespace(size=SIZE))
FILES = (b"\x89PNG\r\n\x1a\n", b"", b"caf\xc3\xa9")
SQUARES = np.arange(2 * SIZE * SIZE, dtype=np.uint8).reshape(2, SIZE, SIZE) * 8 + 7

# Requests of FILES and SQUARES as tritonclient 2.73.0 makes them, in a virtual environment of its
# own: `_get_inference_request` of tritonclient.http._utils and tritonclient.grpc._utils, of an
# InferInput filled by set_data_from_numpy. HTTP_BASE64 has base64 strings, binary_data=False and
# custom_parameters={"content_type": "base64"}; HTTP_NUMBERS has binary_data=False; those of
# pixels name outputs by InferRequestedOutput.
HTTP_IMAGES = bytes.fromhex(
    "7b226964223a22722d31222c22696e70757473223a5b7b226e616d65223a22696d616765222c22736861706522"
    "3a5b335d2c226461746174797065223a224259544553222c22706172616d6574657273223a7b2262696e617279"
    "5f646174615f73697a65223a32357d7d5d2c22706172616d6574657273223a7b2262696e6172795f646174615f"
    "6f7574707574223a747275657d7d0800000089504e470d0a1a0a0000000005000000636166c3a9"
)
HTTP_IMAGES_LENGTH = "149"
HTTP_PIXELS = bytes.fromhex(
    "7b226964223a22722d31222c22696e70757473223a5b7b226e616d65223a22706978656c73222c227368617065"
    "223a5b322c342c345d2c226461746174797065223a2255494e5438222c22706172616d6574657273223a7b2262"
    "696e6172795f646174615f73697a65223a33327d7d5d2c226f757470757473223a5b7b226e616d65223a22636c"
    "617373222c22706172616d6574657273223a7b2262696e6172795f64617461223a66616c73657d7d2c7b226e61"
    "6d65223a226c6f67697473222c22706172616d6574657273223a7b2262696e6172795f64617461223a74727565"
    "7d7d5d7d070f171f272f373f474f575f676f777f878f979fa7afb7bfc7cfd7dfe7eff7ff"
)
HTTP_PIXELS_LENGTH = "229"
HTTP_BASE64 = bytes.fromhex(
    "7b226964223a22722d31222c22696e70757473223a5b7b226e616d65223a22696d616765222c22736861706522"
    "3a5b335d2c226461746174797065223a224259544553222c2264617461223a5b226956424f5277304b47676f3d"
    "222c22222c225932466d77366b3d225d7d5d2c22706172616d6574657273223a7b2262696e6172795f64617461"
    "5f6f7574707574223a747275652c22636f6e74656e745f74797065223a22626173653634227d7d"
)
HTTP_BASE64_LENGTH = None
HTTP_NUMBERS = bytes.fromhex(
    "7b22696e70757473223a5b7b226e616d65223a22706978656c73222c227368617065223a5b322c342c345d2c22"
    "6461746174797065223a2255494e5438222c2264617461223a5b372c31352c32332c33312c33392c34372c3535"
    "2c36332c37312c37392c38372c39352c3130332c3131312c3131392c3132372c3133352c3134332c3135312c31"
    "35392c3136372c3137352c3138332c3139312c3139392c3230372c3231352c3232332c3233312c3233392c3234"
    "372c3235355d7d5d2c226f757470757473223a5b7b226e616d65223a226162737461696e222c22706172616d65"
    "74657273223a7b2262696e6172795f64617461223a66616c73657d7d5d7d"
)
HTTP_NUMBERS_LENGTH = None
GRPC_IMAGES = bytes.fromhex(
    "0a05627261696e12036162631a03722d312a110a05696d616765120542595445531a01033a190800000089504e"
    "470d0a1a0a0000000005000000636166c3a9"
)
GRPC_PIXELS = bytes.fromhex(
    "0a05627261696e12036162631a03722d312a140a06706978656c73120555494e54381a0302040432070a05636c"
    "61737332080a066c6f676974733a20070f171f272f373f474f575f676f777f878f979fa7afb7bfc7cfd7dfe7ef"
    "f7ff"
)


@dataclass(frozen=True)
class Prediction:
    class_name: str
    probabilities: dict[str, float]
    prediction_set: tuple[str, ...]
    abstain: bool
    out_of_distribution: bool
    ood_score: float


def prediction(logits):
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = dict(zip(CLASSES, (exponentials / exponentials.sum()).tolist(), strict=True))
    best = max(probabilities, key=probabilities.get)
    score = float(logits.sum())
    return Prediction(best, probabilities, (best,), score > 1, score > 2, score)


def json_body(root, raw=b""):
    """The bytes of a request and its header, as any HTTP client might write them."""
    head = json.dumps(root).encode()
    return head + raw, str(len(head)) if raw else None


def packed(files):
    return b"".join(struct.pack("<I", len(data)) + data for data in files)


def image_input(files, **more):
    return {"name": "image", "datatype": "BYTES", "shape": [len(files)]} | more


def pixel_input(squares, **more):
    return {"name": "pixels", "datatype": "UINT8", "shape": list(squares.shape)} | more


def raw_size(raw):
    return {"binary_data_size": len(raw)}


def parse(root, raw=b"", **options):
    return v2.parse_http(*json_body(root, raw), SIZE, **options)


def message(name, datatype, shape, raw=None, outputs=(), **contents):
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=each) for each in outputs]
    raws = [] if raw is None else [raw]
    return pb.ModelInferRequest(inputs=[tensor], outputs=wanted, raw_input_contents=raws)


def refused(call, *arguments, **options):
    with pytest.raises(v2.ProtocolError) as caught:
        call(*arguments, **options)
    return caught.value


def same(images, expected):
    assert len(images) == len(expected)
    for found, wanted in zip(images, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert isinstance(found, bytes) == isinstance(wanted, bytes)


def tensor_of(datatype, shape, raw):
    """What a client reads in raw data."""
    if datatype == "BYTES":
        elements, start = [], 0
        while start < len(raw):
            (length,) = struct.unpack_from("<I", raw, start)
            elements.append(raw[start + 4 : start + 4 + length].decode())
            start += 4 + length
        return np.array(elements)
    kind = {"BOOL": "?", "FP32": "<f4", "FP64": "<f8"}[datatype]
    return np.frombuffer(raw, kind).reshape(shape)


def read_http(body):
    """What a client reads in a response: the object, and the tensors by name."""
    head = body.content[: body.header_length]
    root, tensors, start = json.loads(head), {}, len(head)
    for output in root["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            tensors[output["name"]] = np.array(output["data"]).reshape(output["shape"])
        else:
            raw = body.content[start : start + size]
            tensors[output["name"]] = tensor_of(output["datatype"], output["shape"], raw)
            start += size
    assert start == len(body.content)
    return root, tensors


def read_grpc(response):
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {out.name: tensor_of(out.datatype, tuple(out.shape), raw) for out, raw in pairs}


files_strategy = st.lists(st.binary(max_size=40), min_size=1, max_size=5)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
output_names = st.lists(st.sampled_from(v2.OUTPUTS), unique=True)


@st.composite
def square_batches(draw):
    count = draw(st.integers(1, 4))
    raw = draw(st.binary(min_size=count * SIZE * SIZE, max_size=count * SIZE * SIZE))
    return np.frombuffer(raw, np.uint8).reshape(count, SIZE, SIZE)


def test_server_says_what_it_is():
    assert v2.server_metadata() == {
        "name": "btray",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }
    told = v2.server_metadata_message()
    assert (told.name, told.version, list(told.extensions)) == ("btray", __version__, [])


def test_model_says_what_it_takes_and_gives():
    told = v2.model_metadata("brain", ["1", "2"], CARD)

    assert told["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, 4, 4]},
    ]
    assert {out["name"]: (out["datatype"], out["shape"]) for out in told["outputs"]} == {
        "class": ("BYTES", [-1]),
        "probabilities": ("FP32", [-1, 4]),
        "prediction_set": ("BOOL", [-1, 4]),
        "abstain": ("BOOL", [-1]),
        "out_of_distribution": ("BOOL", [-1]),
        "ood_score": ("FP64", [-1]),
        "logits": ("FP32", [-1, 4]),
    }
    assert (told["name"], told["versions"]) == ("brain", ["1", "2"])


def test_both_transports_say_the_same_of_a_model():
    told = v2.model_metadata("brain", ["1"], CARD)
    also = v2.model_metadata_message("brain", ["1"], CARD)

    assert (also.name, list(also.versions), also.platform) == (
        told["name"],
        told["versions"],
        told["platform"],
    )
    for key in ("inputs", "outputs"):
        assert [
            {"name": info.name, "datatype": info.datatype, "shape": list(info.shape)}
            for info in getattr(also, key)
        ] == told[key]


@pytest.mark.parametrize(
    ("body", "length", "images", "outputs", "binary"),
    [
        (HTTP_IMAGES, HTTP_IMAGES_LENGTH, FILES, v2.OUTPUTS, set(v2.OUTPUTS)),
        (HTTP_PIXELS, HTTP_PIXELS_LENGTH, SQUARES, ("class", "logits"), {"logits"}),
        (HTTP_BASE64, HTTP_BASE64_LENGTH, FILES, v2.OUTPUTS, set(v2.OUTPUTS)),
        (HTTP_NUMBERS, HTTP_NUMBERS_LENGTH, SQUARES, ("abstain",), set()),
    ],
    ids=["images", "pixels", "base64", "numbers"],
)
def test_http_requests_of_triton_are_read(body, length, images, outputs, binary):
    request = v2.parse_http(body, length, SIZE)

    same(request.images, images)
    assert request.id == ("" if outputs == ("abstain",) else "r-1")
    assert (request.outputs, request.binary) == (outputs, binary)


@pytest.mark.parametrize(
    ("data", "images", "outputs"),
    [(GRPC_IMAGES, FILES, v2.OUTPUTS), (GRPC_PIXELS, SQUARES, ("class", "logits"))],
    ids=["images", "pixels"],
)
def test_grpc_requests_of_triton_are_read(data, images, outputs):
    read = v2.read_message(data)
    request = v2.parse_message(read, SIZE)

    same(request.images, images)
    assert (request.id, request.outputs, request.binary) == ("r-1", outputs, frozenset())
    assert (read.model_name, read.model_version) == ("brain", "abc")


@given(files_strategy, texts, output_names)
def test_encoded_images_come_the_same_by_every_way(files, request_id, outputs):
    common = {"id": request_id, "outputs": [{"name": name} for name in outputs]}
    raw = packed(files)
    strings = [base64.b64encode(data).decode() for data in files]
    over_grpc = message("image", "BYTES", [len(files)], raw, outputs)
    contents = message("image", "BYTES", [len(files)], None, outputs, bytes_contents=files)
    over_grpc.id = contents.id = request_id
    expected = v2.InferRequest(request_id, tuple(files), tuple(outputs) or v2.OUTPUTS)

    for request in (
        parse(common | {"inputs": [image_input(files, parameters=raw_size(raw))]}, raw),
        *(
            parse(common | {"inputs": [image_input(files, data=strings, parameters=own)]} | whole)
            for own, whole in (
                ({"content_type": "base64"}, {}),
                ({"encoding": "base64"}, {}),
                ({}, {"parameters": {"content_type": "base64"}}),
            )
        ),
        v2.parse_message(over_grpc, SIZE),
        v2.parse_message(contents, SIZE),
        v2.parse_message(v2.read_message(contents.SerializeToString()), SIZE),
    ):
        assert request == expected


@given(st.lists(texts, min_size=1, max_size=4))
def test_strings_stand_for_their_utf8(strings):
    request = parse({"inputs": [image_input(strings, data=strings)]})

    assert request.images == tuple(text.encode() for text in strings)


@given(square_batches())
def test_prepared_squares_come_the_same_by_every_way(squares):
    raw, shape = squares.tobytes(), squares.shape
    flat = squares.ravel().tolist()

    for request in (
        parse({"inputs": [pixel_input(squares, parameters=raw_size(raw))]}, raw),
        parse({"inputs": [pixel_input(squares, data=flat)]}),
        parse({"inputs": [pixel_input(squares, data=squares.tolist())]}),
        v2.parse_message(message("pixels", "UINT8", shape, raw), SIZE),
        v2.parse_message(message("pixels", "UINT8", shape, uint_contents=flat), SIZE),
    ):
        same(request.images, squares)
        assert all(image.flags.writeable for image in request.images)


def test_empty_members_count_as_absent():
    root = {"id": None, "parameters": None, "outputs": None, "inputs": [image_input([b"a"])]}
    root["inputs"][0] |= {"data": ["a"], "parameters": None}

    assert parse(root) == v2.InferRequest("", (b"a",), v2.OUTPUTS)


@given(
    st.sampled_from([None, True, False]),
    st.lists(
        st.tuples(st.sampled_from(v2.OUTPUTS), st.sampled_from([None, True, False])),
        unique_by=lambda pair: pair[0],
    ),
)
def test_an_output_is_binary_by_its_own_word_or_the_request_s(usual, wanted):
    outputs = [
        {"name": n} | ({} if b is None else {"parameters": {"binary_data": b}}) for n, b in wanted
    ]
    whole = {} if usual is None else {"binary_data_output": usual}

    request = parse(
        {"inputs": [image_input([b"a"], data=["a"])], "outputs": outputs, "parameters": whole}
    )

    chosen = dict(wanted) or dict.fromkeys(v2.OUTPUTS)
    assert request.outputs == tuple(chosen)
    assert request.binary == {n for n, b in chosen.items() if (bool(usual) if b is None else b)}


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=4), min_size=n, max_size=n
        )
    ),
    output_names,
    st.sets(st.sampled_from(v2.OUTPUTS)),
    texts,
)
def test_answers_come_the_same_by_every_way(rows, outputs, binary, request_id):
    logits = np.array(rows, np.float32)
    answers = [prediction(row) for row in logits]
    names = tuple(outputs) or v2.OUTPUTS
    images = (b"x",) * len(rows)
    request = v2.InferRequest(request_id, images, names, frozenset(binary) & set(names))

    response = v2.respond(request, "brain", "1", CLASSES, answers, logits)
    body, told = v2.encode_http(response), v2.encode_message(response)
    root, over_http = read_http(body)
    over_grpc = read_grpc(told)

    expected = {
        "class": [a.class_name for a in answers],
        "probabilities": np.array([list(a.probabilities.values()) for a in answers], np.float32),
        "prediction_set": [[n in a.prediction_set for n in CLASSES] for a in answers],
        "abstain": [a.abstain for a in answers],
        "out_of_distribution": [a.out_of_distribution for a in answers],
        "ood_score": [a.ood_score for a in answers],
        "logits": logits,
    }
    assert list(over_http) == list(over_grpc) == list(names)
    for name in names:
        np.testing.assert_array_equal(over_http[name], expected[name])
        np.testing.assert_array_equal(over_grpc[name], expected[name])
    assert (root["model_name"], root["model_version"]) == ("brain", "1")
    assert root.get("id", "") == told.id == request_id
    assert (body.header_length is None) == (not request.binary)


def test_headers_tell_how_a_response_is_laid_out():
    assert v2.HttpBody(b"{}", None).headers == {"Content-Type": "application/json"}
    assert v2.HttpBody(b"{}raw", 2).headers == {
        "Content-Type": "application/octet-stream",
        v2.HEADER_LENGTH: "2",
    }


def test_answers_of_another_number_of_images_are_our_mistake():
    request = v2.InferRequest("", (b"a", b"b"), v2.OUTPUTS)
    logits = np.zeros((1, 4), np.float32)

    with pytest.raises(ValueError, match="2 images and 4 classes, but 1 predictions"):
        v2.respond(request, "brain", "1", CLASSES, [prediction(logits[0])], logits)


def test_what_is_not_finite_is_not_written_as_json():
    logits = np.full((1, 4), np.nan, np.float32)
    request = v2.InferRequest("", (b"a",), ("logits",))
    answers = [prediction(np.zeros(4, np.float32))]

    with pytest.raises(ValueError, match="JSON compliant"):
        v2.encode_http(v2.respond(request, "brain", "1", CLASSES, answers, logits))


ONE = image_input([b"a"], data=["a"])
PIXELS = pixel_input(SQUARES[:1], data=[0] * 16)
REFUSED_JSON = {
    "no inputs": ({}, "has no inputs"),
    "empty inputs": ({"inputs": []}, "0 inputs"),
    "both inputs": ({"inputs": [ONE, PIXELS]}, "2 inputs"),
    "the same twice": ({"inputs": [ONE, ONE]}, "2 inputs"),
    "inputs an object": ({"inputs": ONE}, "inputs is not a list"),
    "an input a string": ({"inputs": ["image"]}, "not an object"),
    "a name unknown": ({"inputs": [ONE | {"name": "picture"}]}, "'picture' is not known"),
    "a name a number": ({"inputs": [ONE | {"name": 3}]}, "name is not a string"),
    "no datatype": ({"inputs": [ONE | {"datatype": None}]}, "has no datatype"),
    "another datatype": ({"inputs": [PIXELS | {"datatype": "FP32"}]}, "is UINT8, not 'FP32'"),
    "no shape": ({"inputs": [ONE | {"shape": None}]}, "has no shape"),
    "a shape of floats": ({"inputs": [ONE | {"shape": [1.0]}]}, "not of whole numbers"),
    "a shape of booleans": ({"inputs": [ONE | {"shape": [True]}]}, "not of whole numbers"),
    "a negative size": ({"inputs": [ONE | {"shape": [-1]}]}, "the shape [n], not '[-1]'"),
    "no image": ({"inputs": [ONE | {"shape": [0], "data": []}]}, "holds no image"),
    "too many sizes": ({"inputs": [ONE | {"shape": [1, 1]}]}, "the shape [n]"),
    "another side": ({"inputs": [PIXELS | {"shape": [1, 5, 5]}]}, "the shape [n, 4, 4]"),
    "huge sizes": ({"inputs": [PIXELS | {"shape": [1, 2**64, 2**64]}]}, "[n, 4, 4]"),
    "no data": ({"inputs": [ONE | {"data": None}]}, "has no data"),
    "data a string": ({"inputs": [ONE | {"data": "a"}]}, "data is not a list"),
    "too little data": ({"inputs": [PIXELS | {"data": [0] * 15}]}, "16 elements; the data has 15"),
    "too many strings": ({"inputs": [ONE | {"data": ["a", "b"]}]}, "the data has 2"),
    "a float": ({"inputs": [PIXELS | {"data": [0.5] * 16}]}, "not a whole number"),
    "a boolean": ({"inputs": [PIXELS | {"data": [0] * 15 + [True]}]}, "not a whole number"),
    "beyond 255": ({"inputs": [PIXELS | {"data": [256] * 16}]}, "not in 0..255"),
    "far beyond 255": ({"inputs": [PIXELS | {"data": [10**100] * 16}]}, "not in 0..255"),
    "below 0": ({"inputs": [PIXELS | {"data": [-1] * 16}]}, "not in 0..255"),
    "a number of BYTES": ({"inputs": [ONE | {"data": [1]}]}, "not a string"),
    "nested otherwise": ({"inputs": [PIXELS | {"data": [[0] * 8, [0] * 8]}]}, "not nested as"),
    "ragged": ({"inputs": [PIXELS | {"data": [[[0] * 4] * 3 + [0]]}]}, "not nested as"),
    "nested too deep": ({"inputs": [ONE | {"data": [["a"]]}]}, "not nested as"),
    "no base64": (
        {"inputs": [ONE | {"data": ["YQ==?"], "parameters": {"encoding": "base64"}}]},
        "not valid base64",
    ),
    "another encoding": (
        {"inputs": [ONE | {"parameters": {"encoding": "hex"}}]},
        "only base64 is known",
    ),
    "half a surrogate pair": ({"inputs": [ONE | {"data": ["\ud800"]}]}, "not Unicode"),
    "an id of half a surrogate pair": ({"id": "\ud800", "inputs": [ONE]}, "not Unicode"),
    "an id a number": ({"id": 7, "inputs": [ONE]}, "id is not a string"),
    "parameters a list": ({"parameters": [1], "inputs": [ONE]}, "parameters is not an object"),
    "shared memory": (
        {"inputs": [ONE | {"parameters": {"shared_memory_region": "r"}}]},
        "shared memory is not supported",
    ),
    "raw data not sent": (
        {"inputs": [image_input([b"a"], parameters={"binary_data_size": 5})]},
        "does not fit the 0 bytes",
    ),
    "a size of raw data below 0": (
        {"inputs": [image_input([b"a"], parameters={"binary_data_size": -1})]},
        "does not fit",
    ),
    "a size of raw data a boolean": (
        {"inputs": [image_input([b"a"], parameters={"binary_data_size": True})]},
        "not a whole number",
    ),
    "data twice": ({"inputs": [ONE | {"parameters": {"binary_data_size": 0}}]}, "has both"),
    "an output unknown": ({"inputs": [ONE], "outputs": [{"name": "mask"}]}, "'mask' is not known"),
    "an output twice": ({"inputs": [ONE], "outputs": [{"name": "class"}] * 2}, "twice"),
    "many outputs": ({"inputs": [ONE], "outputs": [{"name": "class"}] * 99}, "99 outputs"),
    "an output a string": ({"inputs": [ONE], "outputs": ["class"]}, "not an object"),
    "the classification extension": (
        {"inputs": [ONE], "outputs": [{"name": "class", "parameters": {"classification": 2}}]},
        "classification extension is not supported",
    ),
    "binary_data a number": (
        {"inputs": [ONE], "outputs": [{"name": "class", "parameters": {"binary_data": 1}}]},
        "binary_data is not true or false",
    ),
}


@pytest.mark.parametrize(("root", "why"), REFUSED_JSON.values(), ids=REFUSED_JSON)
def test_what_is_wrong_in_json_is_said(root, why):
    error = refused(parse, root)

    assert error.status == "invalid"
    assert why in str(error)


DEEP = b'{"inputs":' + b"[" * 200_000
REFUSED_BODIES = {
    "nothing": (b"", None, "no valid JSON"),
    "half an object": (b'{"inputs"', None, "no valid JSON"),
    "no object": (b"[]", None, "not an object"),
    "not UTF-8": (b'{"id": "\xff"}', None, "not UTF-8 at byte 8"),
    "UTF-16": ('{"id": "a"}'.encode("utf-16"), None, "not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", None, "no valid JSON"),
    "NaN": (b'{"inputs": [{"data": [NaN]}]}', None, "NaN is not JSON"),
    "infinity": (b'{"inputs": [{"data": [-Infinity]}]}', None, "-Infinity is not JSON"),
    "a number beyond all bounds": (b'{"id": ' + b"9" * 9999 + b"}", None, "no valid JSON"),
    "infinity by an exponent": (
        json.dumps({"inputs": [PIXELS | {"data": [7] * 16}]}).replace("7", "1e999").encode(),
        None,
        "not a whole number",
    ),
    "deep nesting": (DEEP, None, "nested too deep"),
    "deep objects": (b'{"a":' * 200_000, None, "nested too deep"),
    "header beyond the body": (b"{}", "3", "is 3; the body has 2 bytes"),
    "header far beyond": (b"{}", "9" * 5000, "no number of bytes"),
    "header negative": (b"{}", "-1", "no number of bytes"),
    "header no number": (b"{}", "two", "no number of bytes"),
    "header of other digits": (b"{}", "\u0662", "no number of bytes"),
    "header empty": (b"{}", "", "no number of bytes"),
    "header cuts the object": (HTTP_IMAGES, "20", "no valid JSON"),
    "header takes data": (HTTP_IMAGES, str(len(HTTP_IMAGES)), "not UTF-8"),
    "no header": (HTTP_IMAGES, None, "Inference-Header-Content-Length"),
    "cut short": (HTTP_IMAGES[:-1], HTTP_IMAGES_LENGTH, "does not fit the 24 bytes"),
    "bytes left over": (HTTP_IMAGES + b"!", HTTP_IMAGES_LENGTH, "1 bytes after the JSON"),
    "bytes of no input": (json.dumps({"inputs": [ONE]}).encode() + b"!", "75", "belong to no"),
}


@pytest.mark.parametrize(("body", "length", "why"), REFUSED_BODIES.values(), ids=REFUSED_BODIES)
def test_what_is_wrong_with_a_body_is_said(body, length, why):
    if length == "75":
        length = str(len(body) - 1)

    error = refused(v2.parse_http, body, length, SIZE)

    assert error.status == "invalid"
    assert why in str(error)
    assert len(str(error)) < 400


REFUSED_RAW = {
    "empty": (b"", "ends before number 0"),
    "half a length": (packed([b"a"]) + b"\1\0", "ends before number 1"),
    "a length beyond the end": (packed([b"a"]) + b"\xff\xff\xff\xff!", "4,294,967,295 bytes"),
    "a byte short": (packed([b"a", b"bc"])[:-1], "2 bytes by its length; 1 are left"),
    "an element too many": (packed([b"a", b"b", b"c"]), "5 bytes are left over"),
}


@pytest.mark.parametrize(("raw", "why"), REFUSED_RAW.values(), ids=REFUSED_RAW)
def test_what_is_wrong_with_raw_data_is_said_by_either_way(raw, why):
    tensor = image_input([b"", b""], parameters=raw_size(raw))

    over_grpc = refused(v2.parse_message, message("image", "BYTES", [2], raw), SIZE)
    over_http = refused(parse, {"inputs": [tensor]}, raw)

    assert why in str(over_grpc)
    assert why in str(over_http)


def with_parameter(name):
    asked = message("image", "BYTES", [1], packed([b"a"]))
    asked.inputs[0].parameters[name].string_param = "r"
    return asked


def with_more(**fields):
    asked = message("image", "BYTES", [1], packed([b"a"]))
    asked.MergeFrom(pb.ModelInferRequest(**fields))
    return asked


REFUSED_MESSAGES = {
    "nothing": (pb.ModelInferRequest(), "0 inputs"),
    "two inputs": (with_more(inputs=[{"name": "pixels"}]), "2 inputs"),
    "a name unknown": (message("picture", "BYTES", [1], b""), "'picture' is not known"),
    "another datatype": (message("image", "UINT8", [1], b""), "is BYTES, not 'UINT8'"),
    "a negative size": (message("pixels", "UINT8", [-1, 4, 4], b""), "the shape [n, 4, 4]"),
    "no image": (message("image", "BYTES", [0], b""), "holds no image"),
    "no data": (message("image", "BYTES", [1]), "is in no field"),
    "data in another field": (
        message("pixels", "UINT8", [1, 4, 4], int_contents=[0] * 16),
        "is in int_contents",
    ),
    "data in two fields": (
        message("image", "BYTES", [1], bytes_contents=[b"a"], bool_contents=[True]),
        "is in bool_contents, bytes_contents",
    ),
    "data twice": (message("image", "BYTES", [1], b"", bytes_contents=[b"a"]), "beside"),
    "raw data twice": (with_more(raw_input_contents=[b""]), "has 2 elements"),
    "too little raw data": (message("pixels", "UINT8", [1, 4, 4], b"0" * 15), "the data has 15"),
    "too much raw data": (message("pixels", "UINT8", [1, 4, 4], b"0" * 17), "the data has 17"),
    "beyond 255": (message("pixels", "UINT8", [1, 4, 4], uint_contents=[256] * 16), "0..255"),
    "too few elements": (message("image", "BYTES", [2], bytes_contents=[b"a"]), "the data has 1"),
    "an output unknown": (with_more(outputs=[{"name": "mask"}]), "'mask' is not known"),
    "an output twice": (with_more(outputs=[{"name": "class"}] * 2), "twice"),
    "shared memory": (with_parameter("shared_memory_region"), "shared memory is not supported"),
    "the classification extension": (
        with_more(
            outputs=[{"name": "class", "parameters": {"classification": {"int64_param": 2}}}]
        ),
        "classification extension is not supported",
    ),
}


@pytest.mark.parametrize(("asked", "why"), REFUSED_MESSAGES.values(), ids=REFUSED_MESSAGES)
def test_what_is_wrong_in_a_message_is_said(asked, why):
    error = refused(v2.parse_message, asked, SIZE)

    assert error.status == "invalid"
    assert why in str(error)


def test_bytes_that_are_no_message_are_refused():
    assert refused(v2.read_message, GRPC_IMAGES[:-1]).status == "invalid"


def test_too_many_images_are_too_large_before_their_data_is_looked_at():
    asked = [b"a"] * 3

    assert refused(parse, {"inputs": [image_input(asked)]}, max_images=2).status == "too_large"
    over_grpc = message("image", "BYTES", [2**62])
    assert refused(v2.parse_message, over_grpc, SIZE).status == "too_large"
    exact = parse({"inputs": [image_input(asked, data=["a"] * 3)]}, max_images=3)
    assert len(exact.images) == 3


def test_a_long_name_is_not_repeated_in_full():
    error = refused(parse, {"inputs": [ONE | {"name": "x" * 10_000}]})

    assert len(str(error)) < 200


def test_an_error_goes_to_another_process_whole():
    error = pickle.loads(pickle.dumps(v2.ProtocolError("too_large", "the limit is 2")))

    assert (error.status, error.message, str(error)) == (
        "too_large",
        "the limit is 2",
        "the limit is 2",
    )


BODIES = [
    (HTTP_IMAGES, HTTP_IMAGES_LENGTH),
    (HTTP_PIXELS, HTTP_PIXELS_LENGTH),
    (HTTP_BASE64, HTTP_BASE64_LENGTH),
    (HTTP_NUMBERS, HTTP_NUMBERS_LENGTH),
]
MESSAGES = [
    GRPC_IMAGES,
    GRPC_PIXELS,
    message(
        "image", "BYTES", [2], None, ["class"], bytes_contents=[b"a", b"b"]
    ).SerializeToString(),
    message("pixels", "UINT8", [1, 4, 4], None, uint_contents=range(16)).SerializeToString(),
]


@st.composite
def damaged(draw, whole):
    """Some bytes with a few of them changed, put in, taken out or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "cut", "repeat"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=6))
            case "delete":
                del data[at : at + draw(st.integers(1, 6))]
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


def answered(parse_it, *arguments):
    """Parse; what is not refused has to be a request that makes sense."""
    refusal = None
    try:
        request = parse_it(*arguments)
    except v2.ProtocolError as error:
        refusal = error
    if refusal is not None:
        assert str(refusal)
        assert refusal.status in ("invalid", "too_large")
        return
    assert 1 <= len(request.images) <= v2.MAX_IMAGES
    assert all(
        isinstance(image, bytes) or (image.shape, image.dtype) == ((SIZE, SIZE), np.uint8)
        for image in request.images
    )
    assert set(request.binary) <= set(request.outputs) <= set(v2.OUTPUTS)
    request.id.encode()


@settings(max_examples=2000)
@given(st.sampled_from(BODIES).flatmap(lambda b: st.tuples(damaged(b[0]), st.just(b[1]))))
def test_damaged_bodies_are_refused_and_nothing_else(body):
    answered(v2.parse_http, *body, SIZE)


@settings(max_examples=500)
@given(
    st.sampled_from(BODIES),
    st.one_of(st.none(), st.text(max_size=20), st.integers(-5, 300).map(str)),
)
def test_any_header_is_read_or_refused(body, length):
    answered(v2.parse_http, body[0], length, SIZE)


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data):
    assert refused(v2.parse_http, data, None, SIZE).status == "invalid"


anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-2, 300),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(["image", "pixels", "UINT8", "BYTES", "class", "\ud800", 10**400]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """Paths to all that is in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inner:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))


@settings(max_examples=2000)
@given(st.sampled_from(BODIES), anything, st.randoms(use_true_random=False))
def test_anything_anywhere_in_the_json_is_read_or_refused(body, junk, random):
    content, length = body
    end = len(content) if length is None else int(length)
    root = json.loads(content[:end])
    *path, last = random.choice(list(places(root)))
    holder = root
    for key in path:
        holder = holder[key]
    holder[last] = junk

    answered(parse, root, content[end:])


@settings(max_examples=2000)
@given(st.sampled_from(MESSAGES).flatmap(damaged))
def test_damaged_messages_are_refused_and_nothing_else(data):
    answered(lambda: v2.parse_message(v2.read_message(data), SIZE))


@settings(max_examples=500)
@given(st.binary(max_size=100))
def test_any_bytes_as_a_message_are_refused(data):
    answered(lambda: v2.parse_message(v2.read_message(data), SIZE))
