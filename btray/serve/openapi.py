"""What the OpenAPI document says of each route, and the page that shows it."""

from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, select_autoescape

from btray.core.pages import NOTICE
from btray.serve.v2 import OUTPUTS

Schema = dict[str, Any]

DESCRIPTION: Final = (
    f"Classifies brain tumours in MRI slices. {NOTICE} With keys, send "
    "`Authorization: Bearer KEY` or `X-API-Key: KEY`."
)
SHORTEST_S: Final = 0.1
"""Shortest time a client may ask for, in seconds."""
_STRING: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "number"}
_STRINGS: Final[Schema] = {"type": "array", "items": _STRING}
_INTEGERS: Final[Schema] = {"type": "array", "items": {"type": "integer"}}


def _object(properties: Schema, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_PROBLEM: Final = _object({"code": _STRING, "message": _STRING})
_ERROR: Final = _object({"error": _PROBLEM, "request_id": _STRING})
_V2_ERROR: Final = _object({"error": _STRING, "code": _STRING, "request_id": _STRING})
"""As the Open Inference Protocol has it: `error` is the message."""
_ANSWER: Final[Schema] = {
    "class": _STRING,
    "probabilities": {"type": "object", "additionalProperties": _NUMBER},
    "prediction_set": _STRINGS,
    "abstain": {"type": "boolean"},
    "out_of_distribution": {"type": "boolean"},
    "ood_score": _NUMBER,
    "model": _object({"name": _STRING, "version": _STRING}),
    "explanation": _object(
        {"method": _STRING, "class": _STRING, "png": {"type": "string", "format": "byte"}}
    ),
}
_RESULT: Final[Schema] = {
    "type": "object",
    "properties": {"index": {"type": "integer"}, **_ANSWER, "error": _PROBLEM},
    "required": ["index"],
}
_CLASSIFIED: Final[Schema] = {
    "oneOf": [
        _object({"request_id": _STRING, **_ANSWER}, ("explanation",)),
        _object({"request_id": _STRING, "results": {"type": "array", "items": _RESULT}}),
    ]
}


def _answers(
    schema: Schema, description: str, *statuses: int, error: Schema = _ERROR
) -> dict[str, Any]:
    """Return `responses` of a route: its answer, and the errors it may have."""
    found: dict[int | str, Schema] = {
        200: {"description": description, "content": {"application/json": {"schema": schema}}}
    }
    for status in sorted({400, 401, 403, 429, 500, *statuses}):
        found[status] = {
            "description": _STATUSES[status],
            "content": {"application/json": {"schema": error}},
        }
    return {"responses": found, "response_model": None}


_STATUSES: Final = {
    400: "A request that makes no sense; the message says why.",
    401: "No key or token, or one that is not valid.",
    403: "A token without the right to ask.",
    404: "No such model or version.",
    413: "Larger than a limit of the server.",
    415: "Not an image, or a content type that is not one.",
    422: "An image that cannot be used.",
    429: "Too many requests; Retry-After says when to come again.",
    500: "A fault of the server; its log has the request id.",
    501: "Turned off on this server.",
    503: "Too much to do, or no model yet; Retry-After says when to come again.",
    504: "No answer in the time that was given.",
}


def _query(name: str, description: str, schema: Schema | None = None) -> Schema:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema or _STRING,
    }


_TIMEOUT: Final[Schema] = {
    "name": "X-Btray-Timeout-Seconds",
    "in": "header",
    "required": False,
    "description": "Longest time until an answer.",
    "schema": {"type": "number", "minimum": SHORTEST_S},
}
_BINARY: Final[Schema] = {"schema": {"type": "string", "format": "binary"}}

CLASSIFY: Final[dict[str, Any]] = {
    "summary": "Classify one slice (the body is the image) or several (a form with files)",
    "tags": ["btray"],
    "openapi_extra": {
        "parameters": [
            _query("model", "Name of the model; by default the first."),
            _query("version", "Version of the model."),
            _query("explain", "`gradcam` adds a picture.", {"type": "string", "enum": ["gradcam"]}),
            _TIMEOUT,
        ],
        "requestBody": {
            "required": True,
            "content": {
                "image/png": _BINARY,
                "image/jpeg": _BINARY,
                "image/webp": _BINARY,
                "image/tiff": _BINARY,
                "image/bmp": _BINARY,
                "application/octet-stream": _BINARY,
                "multipart/form-data": {
                    "schema": _object(
                        {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}}
                    )
                },
            },
        },
    },
    **_answers(_CLASSIFIED, "The answer.", 404, 413, 415, 422, 501, 503, 504),
}
MODELS: Final[dict[str, Any]] = {
    "summary": "Models that answer",
    "tags": ["btray"],
    **_answers(
        _object(
            {
                "models": {
                    "type": "array",
                    "items": _object(
                        {
                            "name": _STRING,
                            "version": _STRING,
                            "versions": _STRINGS,
                            "classes": _STRINGS,
                            "size": {"type": "integer"},
                            "canary_percent": _NUMBER,
                        }
                    ),
                }
            }
        ),
        "The models.",
    ),
}
_V2: Final = {"tags": ["Open Inference Protocol v2"]}
LIVE: Final[dict[str, Any]] = {
    "summary": "Is the server alive",
    **_V2,
    **_answers(_object({"live": {"type": "boolean"}}), "It is.", error=_V2_ERROR),
}
READY: Final[dict[str, Any]] = {
    "summary": "Can it answer",
    **_V2,
    **_answers(_object({"ready": {"type": "boolean"}}), "It can.", 503, error=_V2_ERROR),
}
SERVER: Final[dict[str, Any]] = {
    "summary": "Name, version and extensions of the server",
    **_V2,
    **_answers(
        _object({"name": _STRING, "version": _STRING, "extensions": _STRINGS}),
        "The server.",
        error=_V2_ERROR,
    ),
}
METRICS: Final[dict[str, Any]] = {
    "summary": "btray's metrics of this node, for Prometheus",
    "tags": ["operation"],
    "response_model": None,
    "responses": {200: {"description": "Text.", "content": {"text/plain": {"schema": _STRING}}}},
}
_TENSOR: Final = _object({"name": _STRING, "datatype": _STRING, "shape": _INTEGERS})


def _named(prefix: str) -> list[Schema]:
    names = ["name"] + (["version"] if "{version}" in prefix else [])
    return [{"name": n, "in": "path", "required": True, "schema": _STRING} for n in names]


def model(prefix: str) -> dict[str, Any]:
    """Describe a model's metadata."""
    tensors = {"type": "array", "items": _TENSOR}
    answer = _object(
        {
            "name": _STRING,
            "versions": _STRINGS,
            "platform": _STRING,
            "inputs": tensors,
            "outputs": tensors,
        }
    )
    return {
        "summary": "Inputs and outputs of a model",
        **_V2,
        "openapi_extra": {"parameters": _named(prefix)},
        **_answers(answer, "The model.", 404, 503, error=_V2_ERROR),
    }


def ready(prefix: str) -> dict[str, Any]:
    """Describe whether a model can answer."""
    answer = _object({"name": _STRING, "version": _STRING, "ready": {"type": "boolean"}})
    return {
        "summary": "Can a model answer",
        **_V2,
        "openapi_extra": {"parameters": _named(prefix)},
        **_answers(answer, "It can.", 404, 503, error=_V2_ERROR),
    }


def _input(name: str, datatype: str, dimensions: int) -> Schema:
    sizes = {"type": "integer", "minimum": 1}
    shape = {"type": "array", "items": sizes, "minItems": dimensions, "maxItems": dimensions}
    data = {"type": "array", "items": _STRING if dimensions == 1 else {}}
    tensor = _object(
        {"name": {"const": name}, "datatype": {"const": datatype}, "shape": shape, "data": data}
    )
    return tensor | {"additionalProperties": True}


def infer(prefix: str) -> dict[str, Any]:
    """Describe inference."""
    tensor = {**_TENSOR, "properties": {**_TENSOR["properties"], "data": {"type": "array"}}}
    request = {
        "type": "object",
        "properties": {
            "id": _STRING,
            "inputs": {
                "type": "array",
                "items": {"oneOf": [_input("image", "BYTES", 1), _input("pixels", "UINT8", 3)]},
                "minItems": 1,
                "maxItems": 1,
            },
            "outputs": {
                "type": "array",
                "items": _object({"name": {"enum": list(OUTPUTS)}}),
                "uniqueItems": True,
            },
            "parameters": {"type": "object"},
        },
        "required": ["inputs"],
    }
    answer = _object(
        {
            "model_name": _STRING,
            "model_version": _STRING,
            "id": _STRING,
            "outputs": {"type": "array", "items": tensor},
        },
        ("id",),
    )
    return {
        "summary": "Ask a model, in JSON or with the binary tensor extension",
        **_V2,
        "openapi_extra": {
            "parameters": [*_named(prefix), _TIMEOUT],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": request}},
            },
        },
        **_answers(answer, "Tensors.", 404, 413, 415, 422, 503, 504, error=_V2_ERROR),
    }


def page(document: Schema) -> str:
    """Return the OpenAPI document as a page for people, without a script."""
    template = (files("btray.serve") / "templates" / "docs.html.j2").read_text("utf-8")
    environment = Environment(autoescape=select_autoescape(default=True))
    return environment.from_string(template).render(document=document, notice=NOTICE)
