"""One dimension of a search: a field, and the values it may take."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import optuna

LOGARITHMIC: Final = ("loguniform", "lograndint")
"""Kinds on a logarithmic scale."""
_NUMBER: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Dimension:
    """One field that is searched."""

    path: str
    """The field, such as `train.learning_rate`."""
    kind: str
    """A key of `btray.tune.notation.FUNCTIONS`."""
    low: float | int | None = None
    """Smallest value; none for a choice."""
    high: float | int | None = None
    """Largest value; none for a choice."""
    step: float | int | None = None
    """Distance of two values, for `quniform` and `randint`."""
    choices: tuple[Any, ...] = ()
    """The values of a choice, as the field holds them."""
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of other dimensions with which this one counts; empty when it always does."""

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"choice({text_of(self.choices)})"
        numbers = [n for n in (self.low, self.high, self.step) if n is not None]
        return f"{self.kind}({', '.join(map(text_of, numbers))})"

    def values(self) -> tuple[Any, ...] | None:
        """Return all values in ascending or the given order; None where they make no grid."""
        count = self.count()
        return None if count is None else tuple(self._at(n) for n in range(count))

    def count(self) -> int | None:
        """Return the number of values; None where they make no grid."""
        if self.kind == "choice":
            return len(self.choices)
        if self.step is None:
            return None
        return int((exact(self.high) - exact(self.low)) / exact(self.step)) + 1

    def counts(self, point: Mapping[str, Any]) -> bool:
        """Return whether the dimensions in a point make this one count."""
        return all(path in point and point[path] in values for path, values in self.when.items())

    def condition(self) -> str:
        """Return in words when it counts."""
        return " and ".join(
            f"{path} is {' or '.join(map(text_of, values))}" for path, values in self.when.items()
        )

    def find(self, value: Any) -> Any:  # noqa: ANN401 - a field's value
        """Return the dimension's own value for one that a person wrote or JSON holds.

        Raises:
            ValueError: it is none of the dimension's values.

        """
        for reading in readings(value):
            if self.kind == "choice":
                found = [choice for choice in self.choices if _same(choice, reading)]
            else:
                found = self._numbers(reading)
            if found:
                return found[0]
        raise ValueError(f"{text_of(value)} is not in {self}")

    def draw(self, random: Random) -> Any:  # noqa: ANN401 - a field's value
        """Return a random value; the ends come often, since it is there that settings clash."""
        count = self.count()
        if self.kind == "choice":
            return random.choice(self.choices)
        if count is not None:
            return self._at(random.choice((0, count - 1, random.randrange(count))))
        low, high = self._ends()
        between = random.uniform(low, high)
        inner = round(between) if self.kind == "lograndint" else between
        return random.choice((low, high, inner))

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """Return what Optuna calls this dimension."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.kind == "choice":
            return CategoricalDistribution([self.encode(choice) for choice in self.choices])
        low, high = self._ends()
        log = self.kind in LOGARITHMIC
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log, step=int(self.step or 1))
        return FloatDistribution(low, high, log=log, step=self.step)

    def suggest(self, trial: "optuna.Trial") -> Any:  # noqa: ANN401 - a field's value
        """Return the value that a trial's sampler takes."""
        if self.kind == "choice":
            choices = [self.encode(choice) for choice in self.choices]
            return self.decode(trial.suggest_categorical(self.path, choices))
        low, high = self._ends()
        log = self.kind in LOGARITHMIC
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(self.path, low, high, step=int(self.step or 1), log=log)
        return self.decode(trial.suggest_float(self.path, low, high, step=self.step, log=log))

    def encode(self, value: Any) -> Any:  # noqa: ANN401 - a field's value
        """Return a value as Optuna's parameter: JSON where choices are tuples."""
        own = self.find(value)
        return json.dumps(own) if self._in_json() else own

    def decode(self, parameter: Any) -> Any:  # noqa: ANN401 - a field's value
        """Return the value of Optuna's parameter."""
        return self.find(json.loads(parameter) if self._in_json() else parameter)

    def _in_json(self) -> bool:
        return any(isinstance(choice, tuple) for choice in self.choices)

    def _ends(self) -> tuple[float | int, float | int]:
        if self.low is None or self.high is None:
            raise TypeError(f"{self} has no ends")
        return self.low, self.high

    def _at(self, position: int) -> Any:  # noqa: ANN401 - a field's value
        """Return a value of the grid: decimal, so that 3 x 0.1 is 0.3."""
        if self.kind == "choice":
            return self.choices[position]
        value = exact(self.low) + position * exact(self.step)
        return int(value) if self.kind == "randint" else float(value)

    def _numbers(self, value: Any) -> list[Any]:  # noqa: ANN401 - a field's value
        """Return the dimension's own form of a number in it, or nothing."""
        low, high = self._ends()
        if not is_number(value) or not low <= value <= high:
            return []
        if self.step is not None:
            position = (value - low) / self.step
            near = abs(position - round(position)) < 1e-8  # as Optuna has it
            return [self._at(round(position))] if near else []
        if self.kind == "lograndint":
            return [int(value)] if value == int(value) else []
        return [float(value)]


def readings(value: Any) -> tuple[Any, Any]:  # noqa: ANN401 - YAML
    """Return a value as it is and with texts such as 1e-4, no number in YAML 1.1, as numbers."""
    if isinstance(value, list | tuple):
        pairs = [readings(part) for part in value]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return value, float(value)
    return value, value


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - fields' values
    """Return whether two values are equal, True and 1 not being."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def is_number(value: object) -> bool:
    """Return whether a value is a number, which True is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def exact(number: float | None) -> Decimal:
    """Return a number as it is written in decimals."""
    return Decimal(str(number))


def text_of(value: Any) -> str:  # noqa: ANN401 - YAML
    """Write a value as a person would in YAML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of, value))}]"
    if isinstance(value, float):
        return f"{value:.12g}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
