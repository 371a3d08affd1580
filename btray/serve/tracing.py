"""OpenTelemetry traces of requests; their exporter comes with the extra `traces`.

Ray Serve opens a span for every request, below the caller's `traceparent` where there is one,
and btray one for what it does with the images. No image, file name or key is in any.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from btray.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_RATIO: Final = "OTEL_TRACES_SAMPLER_ARG"
_tracer = trace.get_tracer("btray")


def tracing_config() -> dict[str, Any] | None:
    """Return what Ray Serve is to do, by OpenTelemetry's own variables; None: no traces.

    A collector is named by `OTEL_EXPORTER_OTLP_ENDPOINT`, the share of requests traced that
    have no parent by `OTEL_TRACES_SAMPLER_ARG` (0 to 1, by default all).

    Raises:
        UserError: the extra is not installed, or the share is none.

    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    if not _installed():
        raise UserError(f"{_ENDPOINTS[1]}: traces need `pip install 'btray[traces]'`")
    share = os.environ.get(_RATIO) or "1"
    try:
        ratio = float(share)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise UserError(f"{_RATIO}={share}: give a number from 0 to 1")
    return {
        "enabled": True,
        "exporter_import_path": "btray.serve.tracing:exporter",
        "sampling_ratio": ratio,
    }


def _installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # what it would be in is not there either
        return False


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """Open a span below the request's, if that is traced."""
    if not trace.get_current_span().is_recording():
        yield
        return
    with _tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ):
        yield


def exporter() -> "list[SpanProcessor]":
    """Return what sends the spans of a process to the collector, by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]
