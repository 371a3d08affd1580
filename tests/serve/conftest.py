import io
import random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from btray.config import ImageConfig
from btray.serve.auth import AuthConfig, Authenticator
from btray.serve.batcher import Batcher
from btray.serve.config import LimitsConfig, ModelServed
from btray.serve.models import Models, Source
from btray.serve.service import Service
from tests.serve.fakes import NAMES, FakeEngine


class FakeMonitor:
    """Writes down what it is told."""

    def __init__(self):
        self.requests, self.errors, self.answers, self.shadows = [], [], [], []

    def request(self, *told):
        self.requests.append(told)

    def error(self, code):
        self.errors.append(code)

    def answer(self, *told):
        self.answers.append(told)

    def shadow(self, *told):
        self.shadows.append(told)


class PictureEngine(FakeEngine):
    """Decodes real images; its class is the middle pixel's value, modulo 4."""

    def prepare(self, data):
        from btray.core.prepare import prepare

        square = prepare(data, ImageConfig(size=32))
        return np.full((8, 8), square[16, 16], dtype=np.uint8)


@pytest.fixture
def make_service():
    """Build a service of fake bundles `a` and `b`; its engines are in `service.engines`."""
    batchers = []

    def make(*served, auth=None, explain=True, engine=PictureEngine, **limits):
        card = SimpleNamespace(
            class_names=NAMES, image=SimpleNamespace(size=32), name="fake", card_sha256="0" * 64
        )
        versions = {"a": "v1", "b": "v2", "c": "v3"}
        engines = {}

        def load(source):
            engines[source.version] = engine(version=source.version)
            batchers.append(Batcher(engines[source.version]))
            return batchers[-1]

        models = Models(lambda uri: Source(uri, card, versions[uri]), load, 4, random.Random(0))
        service = Service(
            models,
            LimitsConfig(**limits),
            Authenticator(auth or AuthConfig()),
            FakeMonitor(),
            explain,
        )
        service.engines = engines
        service.served = served or (ModelServed(name="btray", bundle="a"),)
        return service

    yield make
    for batcher in batchers:
        batcher.engine.go.set()
        batcher.close()


@pytest.fixture
def picture():
    """Encode a flat image of one grey value."""

    def make(value=1, kind="PNG", size=(40, 40)):
        buffer = io.BytesIO()
        Image.new("L", size, value).save(
            buffer, kind, **({"lossless": True} if kind == "WEBP" else {})
        )
        return buffer.getvalue()

    return make
