"""What is counted: Ray's metrics, which Prometheus reads from every node."""

import math
from collections import deque
from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from btray.core.answers import Prediction
from btray.core.strange import drift

_SECONDS: Final = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_SIZES: Final = [1.0, 2, 4, 8, 16, 32, 64]
_SHARES: Final = [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
WINDOW: Final = 1000
"""Latest images of which the drift is computed."""
_FEWEST: Final = 100


class Monitor:
    """The counters of one replica."""

    def __init__(self) -> None:
        model = ("model", "version")
        self._requests = Counter(
            "btray_requests_total", "Requests answered.", ("protocol", "route", "status")
        )
        self._errors = Counter("btray_errors_total", "Requests refused or failed.", ("code",))
        self._latency = Histogram(
            "btray_request_seconds", "Until the answer.", _SECONDS, ("protocol", "route")
        )
        self._stages = Histogram(
            "btray_stage_seconds", "Of a batch in a stage.", _SECONDS, ("stage",)
        )
        self._batches = Histogram("btray_batch_images", "Images computed together.", _SIZES)
        self._waiting = Gauge("btray_waiting_images", "Images not yet answered.")
        self._classes = Counter("btray_answers_total", "Images by class.", (*model, "class_name"))
        self._abstained = Counter("btray_abstained_total", "Images not answered for.", model)
        self._strange = Counter("btray_out_of_distribution_total", "Images not known.", model)
        self._confidence = Histogram(
            "btray_confidence", "Highest probability.", _SHARES, (*model, "class_name")
        )
        self._drift = Gauge(
            "btray_drift_psi",
            f"Population stability index of the last {WINDOW} images' strangeness to validation's.",
            model,
        )
        self._shadows = Counter(
            "btray_shadow_total", "Images a shadow was asked too.", ("model", "version", "agrees")
        )
        self._windows: dict[str, deque[float]] = {}
        self._since: dict[str, int] = {}

    def request(self, protocol: str, route: str, status: str, seconds: float) -> None:
        """Count a request that has its answer."""
        self._requests.inc(1, {"protocol": protocol, "route": route, "status": status})
        self._latency.observe(seconds, {"protocol": protocol, "route": route})

    def error(self, code: str) -> None:
        """Count a refusal or a failure by its reason."""
        self._errors.inc(1, {"code": code})

    def batch(self, size: int, waiting_s: float, decode_s: float, infer_s: float) -> None:
        """Count a batch; seconds."""
        self._batches.observe(size)
        for stage, seconds in (("wait", waiting_s), ("decode", decode_s), ("infer", infer_s)):
            self._stages.observe(seconds, {"stage": stage})

    def waiting(self, images: int) -> None:
        """Say how many images wait."""
        self._waiting.set(images)

    def answer(
        self, model: str, version: str, prediction: Prediction, deciles: tuple[float, ...] | None
    ) -> None:
        """Count an answer; `deciles` are those of the strangeness in validation."""
        tags = {"model": model, "version": version}
        classes = tags | {"class_name": prediction.class_name}
        self._classes.inc(1, classes)
        self._confidence.observe(max(prediction.probabilities.values()), classes)
        if prediction.abstain:
            self._abstained.inc(1, tags)
        if prediction.out_of_distribution:
            self._strange.inc(1, tags)
        if deciles is not None:
            self._follow(tags, prediction.ood_score, deciles)

    def shadow(self, model: str, version: str, agrees: bool) -> None:
        """Count an image that a shadow was asked too."""
        self._shadows.inc(1, {"model": model, "version": version, "agrees": str(agrees).lower()})

    def _follow(self, tags: dict[str, str], score: float, deciles: tuple[float, ...]) -> None:
        version = tags["version"]
        window = self._windows.setdefault(version, deque(maxlen=WINDOW))
        window.append(score)
        self._since[version] = self._since.get(version, 0) + 1
        if len(window) >= _FEWEST and self._since[version] >= math.isqrt(WINDOW):
            self._since[version] = 0
            self._drift.set(drift(list(window), deciles), tags)
