"""What the variables of OpenTelemetry ask for."""

import importlib.util

import pytest

from btray.errors import UserError
from btray.serve.tracing import exporter, tracing_config

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ENDPOINT, "OTEL_TRACES_SAMPLER_ARG"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_traced_unless_a_collector_is_named():
    assert tracing_config() is None


def test_the_share_of_requests_is_the_one_asked_for(monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    assert tracing_config()["sampling_ratio"] == 1
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    assert tracing_config()["sampling_ratio"] == 0.25
    module, _, name = tracing_config()["exporter_import_path"].partition(":")
    assert (module, name) == (exporter.__module__, exporter.__name__)


@pytest.mark.parametrize("share", ["half", "-0.1", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(monkeypatch, share):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    with pytest.raises(UserError, match=f"OTEL_TRACES_SAMPLER_ARG={share}: give a number"):
        tracing_config()


def test_without_the_extra_its_name_is_told(monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"btray\[traces\]"):
        tracing_config()
