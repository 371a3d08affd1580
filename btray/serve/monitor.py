"""What is counted: Ray's metrics, which Prometheus reads from every node.

Counting must cost next to nothing beside an answer, and a metric of Ray's costs a tenth of a
millisecond: numbers are added up in the replica and handed on now and then.
"""

import bisect
import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final

from ray.util.metrics import Counter, Gauge

from btray.core.answers import Prediction
from btray.core.strange import drift

FLUSH_S: Final = 1.0
"""How often numbers are handed on, in seconds."""
WINDOW: Final = 1000
"""Latest images of which the drift is computed."""

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)
_SHARES: Final = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_FEWEST: Final = 100
_MODEL: Final = ("model", "version")

Tags = tuple[str, ...]


class _Count:
    """A counter that is handed on later."""

    def __init__(self, name: str, description: str, tags: Tags = ()) -> None:
        self._counter, self._tags = Counter(name, description, tags), tags
        self._new: defaultdict[Tags, float] = defaultdict(float)

    def add(self, *tags: str, value: float = 1) -> None:
        self._new[tags] += value

    def flush(self) -> None:
        new, self._new = self._new, defaultdict(float)
        for tags, value in new.items():
            if value:
                self._counter.inc(value, dict(zip(self._tags, tags, strict=True)))


class _Distribution:
    """A histogram as Prometheus has it: `_bucket` (by `le`), `_sum` and `_count` since the start.

    Ray's counters get `_total` behind their names, which no query for a histogram expects.
    """

    def __init__(
        self, name: str, description: str, bounds: Sequence[float], tags: Tags = ()
    ) -> None:
        self._bounds, self._tags = bounds, tags
        self._labels = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self._buckets = Gauge(f"{name}_bucket", description, (*tags, "le"))
        self._sum = Gauge(f"{name}_sum", description, tags)
        self._count = Gauge(f"{name}_count", description, tags)
        self._seen: dict[Tags, tuple[list[int], list[float]]] = {}
        self._changed: set[Tags] = set()

    def add(self, value: float, *tags: str) -> None:
        counts, total = self._seen.setdefault(tags, ([0] * len(self._labels), [0.0]))
        counts[bisect.bisect_left(self._bounds, value)] += 1
        total[0] += value
        self._changed.add(tags)

    def flush(self) -> None:
        changed, self._changed = self._changed, set()
        for values in changed:
            tags, (counts, total) = dict(zip(self._tags, values, strict=True)), self._seen[values]
            for label, count in zip(self._labels, itertools.accumulate(counts), strict=True):
                self._buckets.set(count, tags | {"le": label})
            self._sum.set(total[0], tags)
            self._count.set(sum(counts), tags)


class Monitor:
    """The counters of one replica; call `flush` every `FLUSH_S`, all from one event loop.

    `batch` may be called from another thread.
    """

    def __init__(self) -> None:
        self._requests = _Count(
            "btray_requests_total", "Requests answered.", ("protocol", "route", "status")
        )
        self._errors = _Count("btray_errors_total", "Requests refused or failed.", ("code",))
        self._latency = _Distribution(
            "btray_request_seconds", "Until the answer.", _SECONDS, ("protocol", "route")
        )
        self._stages = _Distribution(
            "btray_stage_seconds", "Of a batch in a stage.", _SECONDS, ("stage",)
        )
        self._batches = _Distribution("btray_batch_images", "Images computed together.", _SIZES)
        self._classes = _Count("btray_answers_total", "Images by class.", (*_MODEL, "class_name"))
        self._abstained = _Count("btray_abstained_total", "Images not answered for.", _MODEL)
        self._strange = _Count("btray_out_of_distribution_total", "Images not known.", _MODEL)
        self._confidence = _Distribution(
            "btray_confidence", "Highest probability.", _SHARES, (*_MODEL, "class_name")
        )
        self._shadows = _Count(
            "btray_shadow_total", "Images a shadow was asked too.", (*_MODEL, "agrees")
        )
        self._waiting = Gauge("btray_waiting_images", "Images not yet answered.")
        self._drift = Gauge(
            "btray_drift_psi",
            f"Population stability index of the last {WINDOW} images' strangeness to validation's.",
            _MODEL,
        )
        self._done: deque[tuple[int, float, float, float]] = deque()
        self._waits = 0
        self._windows: dict[Tags, tuple[deque[float], tuple[float, ...]]] = {}

    def request(self, protocol: str, route: str, status: str, seconds: float) -> None:
        """Count a request that has its answer."""
        self._requests.add(protocol, route, status)
        self._latency.add(seconds, protocol, route)

    def error(self, code: str) -> None:
        """Count a refusal or a failure by its reason."""
        self._errors.add(code)

    def batch(self, size: int, waiting_s: float, decode_s: float, infer_s: float) -> None:
        """Count a batch; seconds."""
        self._done.append((size, waiting_s, decode_s, infer_s))

    def waiting(self, images: int) -> None:
        """Say how many images wait."""
        self._waits = images

    def answer(
        self, model: str, version: str, prediction: Prediction, deciles: tuple[float, ...] | None
    ) -> None:
        """Count an answer; `deciles` are those of the strangeness in validation."""
        self._classes.add(model, version, prediction.class_name)
        highest = prediction.probabilities[prediction.class_name]
        self._confidence.add(highest, model, version, prediction.class_name)
        if prediction.abstain:
            self._abstained.add(model, version)
        if prediction.out_of_distribution:
            self._strange.add(model, version)
        if deciles is not None:
            window = self._windows.setdefault((model, version), (deque(maxlen=WINDOW), deciles))
            window[0].append(prediction.ood_score)

    def shadow(self, model: str, version: str, agrees: bool) -> None:
        """Count an image that a shadow was asked too."""
        self._shadows.add(model, version, str(agrees).lower())

    def flush(self) -> None:
        """Hand all numbers on to Ray."""
        while self._done:
            size, *seconds = self._done.popleft()
            self._batches.add(size)
            for stage, value in zip(("wait", "decode", "infer"), seconds, strict=True):
                self._stages.add(value, stage)
        for part in vars(self).values():
            if isinstance(part, _Count | _Distribution):
                part.flush()
        self._waiting.set(self._waits)
        for (model, version), (scores, deciles) in self._windows.items():
            if len(scores) >= _FEWEST:
                tags = {"model": model, "version": version}
                self._drift.set(drift(list(scores), deciles), tags)
