"""What a load test found: figures from its raw samples, checks on them, and pictures."""

import io
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from btray.errors import UserError
from btray.serve.load import Plan, Sample, errors_by_reason, step_at

PERCENTILES: Final = {
    "p50": Fraction("0.5"),
    "p90": Fraction("0.9"),
    "p95": Fraction("0.95"),
    "p99": Fraction("0.99"),
    "p99.9": Fraction("0.999"),
}
"""Exact, so that a rank is not one too high."""
LATE_MS: Final = 10.0
"""A load test that is itself later than this, in ms at its 99th percentile, measures itself."""
_BLUE, _ORANGE, _LIGHT = "#0072b2", "#d55e00", "#d0d0d0"
_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_CHECK: Final = re.compile(
    r"(p50|p90|p95|p99|p99\.9|mean|max|errors|rate)(>=|<=|>|<)(\d+(?:\.\d+)?)(ms|s|%|/s)?"
)


def summarise(url: str, plan: Plan, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what `load.json` holds.

    Counted are the requests that were due in the time that is measured, however late they ended;
    `requests_per_second` is of the answers that came within it. Percentiles are samples of the
    answered requests (nearest rank), in ms; None when none was answered.
    """
    counted = measured(plan, samples)
    answered = [sample for sample in counted if not sample.reason]
    in_time = sum(not item.reason and 0 <= item.ended < plan.duration for item in samples)
    errors = errors_by_reason(counted)
    return {
        "url": url,
        "loop": "open" if plan.steps else "closed",
        "plan": asdict(plan),
        "requests": len(counted),
        "answered": len(answered),
        "errors": errors,
        "error_percent": 100 * sum(errors.values()) / len(counted) if counted else 0.0,
        "requests_per_second": in_time / plan.duration,
        "latency_ms": latencies(answered),
        "late_ms_p99": latencies([_lateness(item) for item in counted])["p99"],
        "seconds": _by_second(plan, samples),
    }


def measured(plan: Plan, samples: Sequence[Sample]) -> list[Sample]:
    """Return the requests that count: those due after the warm-up."""
    return [sample for sample in samples if 0 <= sample.due < plan.duration]


def latencies(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Return mean, percentiles and maximum in ms; None of no samples."""
    names = ("mean", *PERCENTILES, "max")
    if not samples:
        return dict.fromkeys(names)
    values = 1000 * np.sort([sample.latency for sample in samples])
    ranks = [math.ceil(percent * len(values)) for percent in PERCENTILES.values()]
    figures = (values.mean(), *(values[rank - 1] for rank in ranks), values.max())
    return {name: round(float(figure), 4) for name, figure in zip(names, figures, strict=True)}


def _lateness(sample: Sample) -> Sample:
    """Return the time that the load test itself let pass."""
    return Sample(sample.due, sample.begun, sample.begun, "")


def _by_second(plan: Plan, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a row a second of the time measured: what was due in it, and how that went."""
    rows: list[list[Sample]] = [[] for _ in range(int(np.ceil(plan.duration)))]
    for sample in measured(plan, samples):
        rows[int(sample.due)].append(sample)
    return [_second(plan, number, row) for number, row in enumerate(rows)]


def _second(plan: Plan, number: int, samples: Sequence[Sample]) -> dict[str, Any]:
    answered = [sample for sample in samples if not sample.reason]
    figures, step = latencies(answered), step_at(plan, number)
    return {
        "second": number,
        "rate": step.rate if step else None,
        "requests": len(samples),
        "answered": len(answered),
        "errors": len(samples) - len(answered),
        "p50_ms": figures["p50"],
        "p99_ms": figures["p99"],
    }


@dataclass(frozen=True)
class Check:
    """Something that must not be so."""

    name: str
    """A percentile, `mean`, `max`, `errors` or `rate`."""
    sign: str
    """`>`, `>=`, `<` or `<=`."""
    limit: float
    """In the unit."""
    unit: str
    """`ms`, `%`, `/s`, or empty for a count."""

    def finding(self, summary: Mapping[str, Any]) -> str | None:
        """Return what is so; None when it is not."""
        value = self._value(summary)
        if not _OPERATORS[self.sign](value, self.limit):
            return None
        told = "no answer" if np.isinf(value) else f"{value:.4g}{self.unit}"
        return f"{self.name} {told} (to fail on: {self.sign}{self.limit:g}{self.unit})"

    def _value(self, summary: Mapping[str, Any]) -> float:
        if self.name == "rate":
            return float(summary["requests_per_second"])
        if self.name == "errors" and self.unit == "%":
            return float(summary["error_percent"])
        if self.name == "errors":
            return float(sum(summary["errors"].values()))
        milliseconds = summary["latency_ms"][self.name]
        return float("inf") if milliseconds is None else float(milliseconds)


def parse_checks(text: str) -> list[Check]:
    """Read checks such as `p99>50ms,errors>0.5%,rate<100`.

    Raises:
        UserError: one is not a check, or has a unit that it cannot have.

    """
    return [_parse_check(part) for part in text.split(",") if part.strip()]


def _parse_check(text: str) -> Check:
    match = _CHECK.fullmatch("".join(text.split()))
    if match is None:
        raise UserError(f"--fail-on: {text.strip()!r}; write it like p99>50ms, errors>0.5%, rate<9")
    name, sign, number, unit = match.groups(default="")
    limit = float(number)
    if name not in ("errors", "rate"):
        if unit not in ("ms", "s"):
            raise UserError(f"--fail-on: {text.strip()!r}: a latency is in ms or s, such as 50ms")
        return Check(name, sign, limit * 1000 if unit == "s" else limit, "ms")
    if unit not in (("", "%") if name == "errors" else ("", "/s")):
        raise UserError(f"--fail-on: {text.strip()!r}: {name} cannot be in {unit}")
    return Check(name, sign, limit, "/s" if name == "rate" else unit)


def write(directory: Path, summary: Mapping[str, Any], samples: Sequence[Sample]) -> list[Path]:
    """Write load.json, latency.png and timeline.png; return them.

    Raises:
        UserError: the folder cannot be written to.

    """
    values = np.array([1000 * sample.latency for sample in samples if not sample.reason])
    contents = {
        "load.json": (json.dumps(summary, indent=1) + "\n").encode(),
        "latency.png": _png(draw_latency(values, summary)),
        "timeline.png": _png(draw_timeline(summary)),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            (directory / name).write_bytes(data)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}") from None
    return [directory / name for name in contents]


def draw_latency(values: NDArray[np.float64], summary: Mapping[str, Any]) -> Figure:
    """Draw how many requests took how long, in ms, with the percentiles."""
    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(
        f"{summary['answered']:,} answers, {summary['requests_per_second']:,.1f} a second"
    )
    axes.set(xlabel="latency (ms)", ylabel="answers")
    if not values.size:
        axes.text(0.5, 0.5, "no request was answered", ha="center", transform=axes.transAxes)
        return figure
    low, high = max(values.min(), 0.01), max(values.max(), 0.01)
    axes.hist(values, bins=np.geomspace(low * 0.95, high * 1.05, 80).tolist(), color=_BLUE)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: _minor(value, high / low)))
    for name, style in (("p50", "-"), ("p95", "--"), ("p99", "-."), ("p99.9", ":")):
        value = summary["latency_ms"][name]
        axes.axvline(value, color=_ORANGE, linestyle=style, label=f"{name} {_brief(value)} ms")
    axes.legend(frameon=False)
    return figure


def _brief(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _minor(value: float, span: float) -> str:
    """Label 2 and 5 between the powers of ten, unless there are many of those."""
    leading = f"{value:e}"[0]
    return f"{value:g}" if leading in "25" and span < 1000 else ""


def draw_timeline(summary: Mapping[str, Any]) -> Figure:
    """Draw what came and was answered, the latency and the errors, second by second."""
    rows = summary["seconds"]
    seconds = [row["second"] + 0.5 for row in rows]

    def column(name: str) -> list[float]:
        return [float("nan") if row[name] is None else row[name] for row in rows]

    figure = Figure(figsize=(8.0, 6.4), layout="constrained")
    load, latency, errors = figure.subplots(3, 1, sharex=True, height_ratios=(2, 2, 1))
    load.bar(seconds, column("requests"), width=1, color=_LIGHT, label="requests due")
    load.plot(seconds, column("answered"), "o-", markersize=3, color=_BLUE, label="answered")
    load.set(ylabel="a second", ylim=(0, None))
    latency.plot(seconds, column("p50_ms"), "o-", markersize=3, color=_BLUE, label="p50")
    latency.plot(seconds, column("p99_ms"), "s-", markersize=3, color=_ORANGE, label="p99")
    if summary["answered"]:
        latency.set_yscale("log")
    latency.set(ylabel="latency (ms)")
    latency.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    errors.bar(seconds, column("errors"), width=0.9, color=_ORANGE)
    errors.set(ylabel="errors", xlabel="second in which the request was due")
    errors.set_ylim(0, max([1, *column("errors")]) * 1.1)
    errors.yaxis.set_major_locator(MaxNLocator(integer=True))
    load.legend(frameon=False)
    latency.legend(frameon=False)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
