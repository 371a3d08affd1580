"""A sweep as pictures, in colours that the colour-blind can tell apart (Okabe and Ito 2008)."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from btray.core.pages import NOTICE
from btray.tune.dimension import Dimension
from btray.tune.outcome import LOWER_IS_BETTER, Importance, Outcome, Trial
from btray.tune.space import Space

LABELS: Final = {
    "macro_f1": "validation macro-F1",
    "accuracy": "validation accuracy",
    "macro_auroc": "validation macro AUROC",
    "loss": "validation loss",
    "latency_ms": "latency of one image [ms]",
    "parameters": "parameters",
}
_BEST: Final = "#d55e00"
_STYLES: Final[dict[str, dict[str, Any]]] = {
    "stopped": {"color": "#999999", "linewidth": 0.8, "marker": "."},
    "finished": {"color": "#0072b2", "linewidth": 1.0, "marker": "."},
    "running": {"color": "#56b4e9", "linewidth": 1.0, "linestyle": "--", "marker": ">"},
    "paused": {"color": "#56b4e9", "linewidth": 1.0, "linestyle": ":", "marker": "s"},
    "failed": {"color": "#cc79a7", "linewidth": 1.0, "marker": "x"},
}
"""How the curves of trials look, by state; the marker is at their end."""
_SHADES: Final = colormaps["viridis"]


def plot_overview(outcome: Outcome) -> bytes:
    """Draw learning curves beside the best score so far; return a PNG."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    curves, progress = figure.subplots(1, 2)
    _curves(curves, outcome)
    curves.set_ylim(*_wide(outcome))
    curves.set_title("learning curves")
    _legend(curves, outcome)
    _progress(progress, outcome)
    progress.set_title("best so far")
    figure.suptitle(_plain(f"{outcome.name}: {len(outcome.trials)} trials"))
    caveat = "The best is chosen by these very scores, which makes its own optimistic."
    figure.supxlabel(f"{caveat}\n{NOTICE}", fontsize=8)
    return _png(figure)


def plot_curves(outcome: Outcome) -> bytes:
    """Draw every trial's metric over its epochs, whole and where the best are; return a PNG."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    whole, close = figure.subplots(1, 2)
    for axes, limits in ((whole, _wide(outcome)), (close, _close(outcome))):
        _curves(axes, outcome)
        axes.set_ylim(*limits)
    whole.set_title("all")
    close.set_title("where the best fifth ended, enlarged")
    _legend(whole, outcome)
    return _png(figure)


def plot_progress(outcome: Outcome) -> bytes:
    """Draw the best score so far against the epochs spent; return a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    _progress(figure.subplots(), outcome)
    return _png(figure)


def plot_importance(importance: Importance) -> bytes:
    """Draw the shares of an importance that could be told; return a PNG."""
    shares = importance.shares or {}
    figure = Figure(figsize=(10, 1 + 0.36 * len(shares)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([_plain(path) for path in shares], list(shares.values()), color="#0072b2")
    texts = ["<0.1%" if 0 < share < 0.0005 else f"{share:.1%}" for share in shares.values()]
    axes.bar_label(bars, texts, padding=4)
    axes.invert_yaxis()
    axes.set(xlabel="share of the variance that single hyperparameters explain")
    axes.set_xlim(0, 1.12 * max(shares.values(), default=1))
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def plot_pareto(outcome: Outcome) -> bytes:
    """Draw the first objective against each other one, the Pareto front marked; return a PNG."""
    first, *others = outcome.objectives
    front = {trial.id: number for number, trial in enumerate(numbered_front(outcome), start=1)}
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    for axes, other in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        points = [(t, outcome.value(t, other), outcome.value(t, first)) for t in outcome.trials]
        known = [
            (t, x, y)
            for t, x, y in points
            if x is not None and y is not None and t.state != "failed"
        ]
        best = sorted((x, y, front[t.id]) for t, x, y in known if t.id in front)
        rest = [(x, y) for t, x, y in known if t.id not in front]
        axes.scatter(*_columns(rest), s=22, color="#999999", label="other trials")
        # Of more than two objectives the front is a surface, and has no line.
        line = "none" if len(others) > 1 else "-"
        steps = "steps-post" if other in LOWER_IS_BETTER else "steps-pre"
        look = {"color": _BEST, "marker": "o", "linestyle": line, "drawstyle": steps}
        axes.plot(*_columns(best), label="Pareto front", **look)
        xs = [x for _, x, _ in known]
        if xs and min(xs) > 0 and max(xs) > 10 * min(xs):
            axes.set_xscale("log")
        _number_points(axes, best)
        axes.set(xlabel=LABELS[other], ylabel=LABELS[first])
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def plot_parallel(outcome: Outcome, space: Space) -> bytes:
    """Draw every scored trial as a line through its hyperparameters to its score; return a PNG.

    Dimensions that do not count in some trials stand on the left; a line has a gap there.
    """
    scored = [trial for trial in reversed(outcome.ranked()) if outcome.score(trial) is not None]
    scales = sorted(
        (_Scale(dimension, space, scored) for dimension in space.dimensions),
        key=lambda scale: not scale.conditional,
    )
    figure = Figure(figsize=(max(10, len(scales) + 1.5), 5.4), layout="constrained")
    axes = figure.subplots()
    scores = _Scores(outcome, [outcome.score(trial) or 0.0 for trial in scored])
    best, faint = outcome.best, 0.6 if len(scored) <= 40 else 0.15
    for row, trial in enumerate(scored):
        # Spread a little, so that lines through one choice can be told apart.
        shift = 0.03 * (((row + 1) * 0.618034) % 1 - 0.5)
        heights = [scale.height(trial.point, shift) for scale in scales]
        heights.append(scores.height(outcome.score(trial) or 0.0))
        chosen = best is not None and trial.id == best.id
        axes.plot(
            heights,
            color=_BEST if chosen else scores.colour(heights[-1]),
            linewidth=2.4 if chosen else 1.0,
            alpha=1 if chosen else faint + (0.85 - faint) * heights[-1],
            marker="o",
            markersize=5 if chosen else 2.5,
        )
    columns: list[_Scale | _Scores] = [*scales, scores]
    for position, scale in enumerate(columns):
        axes.axvline(position, color="black", linewidth=0.8, zorder=0.5)
        for height, text in scale.ticks():
            axes.annotate(
                text,
                (position, height),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
            )
        axes.text(position, 1.05, scale.title, rotation=20, ha="left", va="bottom", fontsize=9)
    axes.set(xlim=(-0.1, len(scales) + 0.5), ylim=(-0.04, 1.04))
    axes.axis("off")
    return _png(figure)


def numbered_front(outcome: Outcome) -> list[Trial]:
    """Return the Pareto front in the order it is numbered: by the first objective, best first."""
    first = outcome.objectives[0] if outcome.objectives else ""
    sign = 1 if first in LOWER_IS_BETTER else -1
    return sorted(outcome.pareto(), key=lambda trial: sign * (outcome.value(trial, first) or 0.0))


class _Scale:
    """A vertical axis for one hyperparameter: heights from 0 to 1."""

    def __init__(self, dimension: Dimension, space: Space, trials: Sequence[Trial]) -> None:
        self.path: str = dimension.path
        self.title = _plain(self.path)
        taken = [trial.point[self.path] for trial in trials if self.path in trial.point]
        self.conditional = len(taken) < len(trials)
        self.choices = [shown(choice) for choice in dimension.choices]
        if not self.choices:
            distribution: Any = space.distributions()[self.path]
            self.log = bool(distribution.log)
            self.low, self.high = float(distribution.low), float(distribution.high)

    def height(self, point: dict[str, Any], shift: float) -> float:
        """Return where a point is on the axis, not a number where it has no such value."""
        if self.path not in point:
            return math.nan
        value = point[self.path]
        if self.choices:
            return self._of_choice(self.choices.index(shown(value))) + shift
        return self._of_number(value)

    def ticks(self) -> list[tuple[float, str]]:
        """Return heights and what is written at them."""
        if self.choices:
            return [(self._of_choice(i), _short(v)) for i, v in enumerate(self.choices)]
        if self.low == self.high:
            return [(0.5, f"{self.low:g}")]
        locator: Any = MaxNLocator(5)
        if self.log:
            decades = math.log10(self.high / self.low)
            locator = LogLocator(subs=(1,) if decades >= 3 else (1, 2, 5))
        values = locator.tick_values(self.low, self.high)
        inside = [float(value) for value in values if self.low <= value <= self.high]
        return [(self._of_number(value), f"{value:g}") for value in inside]

    def _of_choice(self, index: int) -> float:
        return (index + 0.5) / len(self.choices)

    def _of_number(self, value: float) -> float:
        if self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class _Scores:
    """The vertical axis of the score: the best at the top, the worst tenth all at the bottom."""

    def __init__(self, outcome: Outcome, scores: Sequence[float]) -> None:
        self.title = LABELS[outcome.metric]
        self.lower_is_better = outcome.metric in LOWER_IS_BETTER
        self.scores = scores
        pick = max if not self.lower_is_better else min
        self.top = pick(scores)
        self.bottom = float(np.quantile(scores, 0.9 if self.lower_is_better else 0.1))

    def height(self, score: float) -> float:
        """Return where a score is on the axis."""
        if self.top == self.bottom:
            return 0.5 if score == self.top else 0.0
        return max(0.0, (score - self.bottom) / (self.top - self.bottom))

    def colour(self, height: float) -> Any:  # noqa: ANN401 - a colour of matplotlib
        """Return a colour, the darker the better the score."""
        return _SHADES(0.93 * (1 - height))

    def ticks(self) -> list[tuple[float, str]]:
        """Return heights and what is written at them."""
        if self.top == self.bottom:
            return [(0.5, f"{self.top:.4g}")]
        low, high = sorted((self.bottom, self.top))
        values = [float(v) for v in MaxNLocator(6).tick_values(low, high) if low < v < high]
        inside = [(self.height(v), f"{v:.4g}") for v in values if 0.05 < self.height(v) < 0.95]
        worse = any((s > high) if self.lower_is_better else (s < low) for s in self.scores)
        sign = ("\u2265 " if self.lower_is_better else "\u2264 ") if worse else ""
        return [(0.0, f"{sign}{self.bottom:.4g}"), *inside, (1.0, f"{self.top:.4g}")]


def shown(value: object) -> str:
    """Return a value of a hyperparameter as a person reads it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _short(text: str) -> str:
    return _plain(text if len(text) <= 20 else f"{text[:19]}\u2026")


def _plain(text: str) -> str:
    """Return text in one line that matplotlib does not take for mathematics."""
    return " ".join(text.split()).replace("$", r"\$")


def _columns(rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
    return [row[0] for row in rows], [row[1] for row in rows]


def _number_points(axes: Axes, points: Sequence[tuple[float, float, int]]) -> None:
    """Write numbers beside points as far as there is room, the first ones first."""
    axes.autoscale_view()
    placed: list[Any] = []
    for x, y, number in sorted(points, key=lambda point: point[2]):
        place = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        if all(abs(place - other).max() > 0.05 for other in placed):
            placed.append(place)
            axes.annotate(str(number), (x, y), (5, -11), textcoords="offset points", fontsize=9)


def _curves(axes: Axes, outcome: Outcome) -> None:
    key, best = f"val_{outcome.metric}", outcome.best
    faint = 0.8 if len(outcome.trials) <= 40 else 0.5
    for trial in reversed(outcome.ranked()):
        epochs = [row["epoch"] + 1 for row in trial.history]
        values = [row.get(key, math.nan) for row in trial.history]
        style = _STYLES[trial.state] | {"alpha": faint, "markersize": 4, "markevery": [-1]}
        if best is not None and trial.id == best.id:
            style |= {"color": _BEST, "linewidth": 2.4, "alpha": 1}
        if epochs:
            axes.plot(epochs, values, **style)
    axes.set(xlabel="epoch", ylabel=LABELS[outcome.metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _legend(axes: Axes, outcome: Outcome) -> None:
    lines = []
    if outcome.best is not None:
        lines.append(Line2D([], [], color=_BEST, linewidth=2.4, label="best"))
    for state, style in _STYLES.items():
        number = outcome.count(state)
        if number:
            lines.append(Line2D([], [], label=f"{state} ({number})", **style))
    axes.legend(handles=lines, fontsize="small")


def _progress(axes: Axes, outcome: Outcome) -> None:
    spent, scored = 0, []
    for trial in outcome.trials:
        spent += len(trial.history)
        score = outcome.score(trial)
        if score is not None and trial.state != "failed":
            scored.append((spent, score))
    low, high = _range([score for _, score in scored], 0.8, outcome)
    inside = [(at, score) for at, score in scored if low <= score <= high]
    beyond = [(at, score) for at, score in scored if not low <= score <= high]
    axes.scatter(*_columns(inside), s=14, color="#999999", label="a trial's score")
    if beyond:
        upward = outcome.metric in LOWER_IS_BETTER
        edge, mark = (0.985, "^") if upward else (0.015, "v")
        places, across = [at for at, _ in beyond], axes.get_xaxis_transform()
        look: dict[str, Any] = {"marker": mark, "s": 14, "color": "#999999", "transform": across}
        axes.scatter(places, [edge] * len(places), label="a worse one's, off scale", **look)
    curve = outcome.best_so_far()
    axes.step(*_columns(curve), where="post", color=_BEST, linewidth=2, label="best so far")
    axes.set(xlabel="epochs spent, trial after trial", ylabel=LABELS[outcome.metric])
    axes.set(xlim=(0, None), ylim=(low, high))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _wide(outcome: Outcome) -> tuple[float, float]:
    key = f"val_{outcome.metric}"
    values = [row.get(key, math.nan) for trial in outcome.trials for row in trial.history]
    return _range([value for value in values if math.isfinite(value)], 0, outcome)


def _close(outcome: Outcome) -> tuple[float, float]:
    scores = [outcome.score(trial) for trial in outcome.trials]
    return _range([score for score in scores if score is not None], 0.8, outcome)


def _range(values: Sequence[float], left_out: float, outcome: Outcome) -> tuple[float, float]:
    """Return limits of an axis for values, without the given share of the worst."""
    if not values:
        return 0.0, 1.0
    worse = 1 - left_out if outcome.metric in LOWER_IS_BETTER else left_out
    best = min(values) if outcome.metric in LOWER_IS_BETTER else max(values)
    low, high = sorted((float(np.quantile(values, worse)), best))
    margin = 0.06 * (high - low) or 0.01 * (abs(high) or 1)
    return low - margin, high + margin


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
