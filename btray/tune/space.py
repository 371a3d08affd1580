"""Which settings a search varies and between which values: `tune.space`, read and checked."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal, Self, get_args, get_origin

from pydantic import ValidationError

from btray.config import Config, Section, field_paths, nearest_path, parse_yaml, resolve_config
from btray.errors import UserError

if TYPE_CHECKING:
    import optuna

GRID_LIMIT: Final = 100_000
"""Most points a grid may have."""
FUNCTIONS: Final = {
    "uniform": "uniform(low, high)",
    "loguniform": "loguniform(low, high)",
    "quniform": "quniform(low, high, step)",
    "randint": "randint(low, high) or randint(low, high, step)",
    "lograndint": "lograndint(low, high)",
    "choice": "choice([a, b])",
}
"""How each kind of dimension is written; low and high are always included."""
FIXED: Final = frozenset(
    {
        "data.dataset",
        "data.fold",
        "data.cache_dir",
        "data.cache_limit",
        "data.node_labels",
        "train.teacher",
        "train.workers",
        "train.cpus_per_worker",
        "train.metric",
        "train.max_failures",
        "train.keep_checkpoints",
        "train.checkpoint_every",
        "train.gpu",
    }
)
"""Fields that are never searched, nor is any of `run` and `tracking`."""

_ARGUMENTS: Final = {"quniform": (3,), "randint": (2, 3), "choice": (1,)}
_WHOLE: Final = {"uniform": "randint", "quniform": "randint", "loguniform": "lograndint"}
"""What to write for a field of whole numbers."""
_LOGARITHMIC: Final = ("loguniform", "lograndint")
_TRIED: Final = 200
"""Points that are tried before a search starts."""
_LARGEST: Final = 2**53
"""From here on not every whole number is a double."""
_NUMBER: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.?[0-9]*)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Dimension:
    """One field that is searched."""

    path: str
    """The field, such as `train.learning_rate`."""
    kind: str
    """A key of `FUNCTIONS`."""
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
            return f"choice({_text(self.choices)})"
        numbers = [n for n in (self.low, self.high, self.step) if n is not None]
        return f"{self.kind}({', '.join(map(_text, numbers))})"

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
        return int((_exact(self.high) - _exact(self.low)) / _exact(self.step)) + 1

    def counts(self, point: Mapping[str, Any]) -> bool:
        """Return whether the dimensions in a point make this one count."""
        return all(path in point and point[path] in values for path, values in self.when.items())

    def find(self, value: Any) -> Any:  # noqa: ANN401 - a field's value
        """Return the dimension's own value for one that a person wrote or JSON holds.

        Raises:
            ValueError: it is none of the dimension's values.

        """
        for reading in _readings(value):
            if self.kind == "choice":
                same = [choice for choice in self.choices if _same(choice, reading)]
            else:
                same = self._numbers(reading)
            if same:
                return same[0]
        raise ValueError(f"{_text(value)} is not in {self}")

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
        log = self.kind in _LOGARITHMIC
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log, step=int(self.step or 1))
        return FloatDistribution(low, high, log=log, step=self.step)

    def suggest(self, trial: "optuna.Trial") -> Any:  # noqa: ANN401 - a field's value
        """Return the value that a trial's sampler takes."""
        if self.kind == "choice":
            choices = [self.encode(choice) for choice in self.choices]
            return self.decode(trial.suggest_categorical(self.path, choices))
        low, high = self._ends()
        log = self.kind in _LOGARITHMIC
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
        exact = _exact(self.low) + position * _exact(self.step)
        return int(exact) if self.kind == "randint" else float(exact)

    def _numbers(self, value: Any) -> list[Any]:  # noqa: ANN401 - a field's value
        """Return the dimension's own form of a number in it, or nothing."""
        low, high = self._ends()
        if not _is_number(value) or not low <= value <= high:
            return []
        if self.step is not None:
            position = (value - low) / self.step
            near = abs(position - round(position)) < 1e-8  # as Optuna has it
            return [self._at(round(position))] if near else []
        if self.kind == "lograndint":
            return [int(value)] if value == int(value) else []
        return [float(value)]


@dataclass(frozen=True)
class Space:
    """The dimensions of a search; a point of it is a value for every one that counts."""

    dimensions: tuple[Dimension, ...]
    """In an order in which a `when` names earlier ones only."""

    @classmethod
    def parse(cls, tree: Mapping[str, Any], base: Config) -> Self:
        """Read `tune.space` and try it on the settings that are searched around.

        Raises:
            UserError: what is written is not a space over fields of the tree, a value is
                refused by its field, or values together by the tree.

        """
        if not isinstance(tree, Mapping) or not tree:
            raise UserError(
                "tune.space: nothing to search; write a mapping such as "
                "{train.learning_rate: 'loguniform(1e-4, 1e-2)'}"
            )
        dimensions, conditions = {}, {}
        for path, value in tree.items():
            text, conditions[path] = _written(path, value)
            dimensions[path] = _dimension(path, text, base)
        space = cls(
            _sorted(
                replace(dimension, when=_conditions(path, conditions[path], dimensions))
                for path, dimension in dimensions.items()
            )
        )
        if space.size() == 1:
            raise UserError("tune.space: every dimension has one value; nothing to search")
        space._try(base)
        return space

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Return the point a trial's sampler takes, dimension by dimension."""
        point: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.counts(point):
                point[dimension.path] = dimension.suggest(trial)
        return point

    def grid(self) -> list[dict[str, Any]]:
        """Return every point, the first dimension changing slowest.

        Raises:
            UserError: a dimension has no grid, or there are more than `GRID_LIMIT` points.

        """
        self._check_grid()
        points: list[dict[str, Any]] = [{}]
        for dimension in self.dimensions:
            values = dimension.values() or ()
            points = [
                grown
                for point in points
                for grown in (
                    [{**point, dimension.path: value} for value in values]
                    if dimension.counts(point)
                    else [point]
                )
            ]
        return points

    def size(self) -> int | None:
        """Return the number of points; None when a dimension has no grid."""
        if any(dimension.count() is None for dimension in self.dimensions):
            return None
        return self._size(0, {})

    def apply(self, base: Config, point: Mapping[str, Any]) -> Config:
        """Return settings with the values of a point.

        Raises:
            UserError: as `resolve_config` does.

        """
        return merged(base, point)

    def check_point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point that a person wrote, in the values and the order of the dimensions.

        Raises:
            UserError: a field that is not searched, is missing or does not count, or a
                value outside the space.

        """
        if not isinstance(point, Mapping):
            raise UserError("tune.points: a point is a mapping such as {train.epochs: 20}")
        for path in point:
            self._dimension("tune.points", path)
        checked: dict[str, Any] = {}
        for dimension in self.dimensions:
            path, counts = dimension.path, dimension.counts(checked)
            if counts and path not in point:
                raise UserError(f"tune.points: {path} is missing; add a value of {dimension}")
            if path in point and not counts:
                raise UserError(
                    f"tune.points: {path} counts only when {_condition(dimension)}; leave it out"
                )
            if counts:
                checked |= self._converted("tune.points", {path: point[path]}, Dimension.find)
        return checked

    def distributions(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        """Return Optuna's distributions by path, those of conditional dimensions included."""
        return {dimension.path: dimension.distribution() for dimension in self.dimensions}

    def encode(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point as Optuna's parameters; raises UserError when it is not in the space."""
        return self._converted("point", point, Dimension.encode)

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the point of Optuna's parameters.

        Raises:
            UserError: a parameter that is not in the space, as of another study.

        """
        return self._converted("study", params, Dimension.decode)

    def _dimension(self, where: str, path: str) -> Dimension:
        by_path = {dimension.path: dimension for dimension in self.dimensions}
        if path not in by_path:
            hint = _close(path, by_path, f"tune.space has {', '.join(by_path)}")
            raise UserError(f"{where}: {path} is not searched; {hint}")
        return by_path[path]

    def _converted(
        self, where: str, values: Mapping[str, Any], convert: Callable[[Dimension, Any], Any]
    ) -> dict[str, Any]:
        converted = {}
        for path, value in values.items():
            dimension = self._dimension(where, path)
            try:
                converted[path] = convert(dimension, value)
            except (ValueError, TypeError):
                raise UserError(f"{where}: {path}: {_text(value)} is not in {dimension}") from None
        return converted

    def _size(self, position: int, point: dict[str, Any]) -> int:
        """Return how many points go on from one, telling apart only values that a `when` names."""
        if position == len(self.dimensions):
            return 1
        dimension = self.dimensions[position]
        if not dimension.counts(point):
            return self._size(position + 1, point)
        named = {v for other in self.dimensions for v in other.when.get(dimension.path, ())}
        others = (dimension.count() or 0) - len(named)
        size = others * self._size(position + 1, point) if others else 0
        return size + sum(
            self._size(position + 1, {**point, dimension.path: value}) for value in named
        )

    def _check_grid(self) -> None:
        for dimension in self.dimensions:
            if dimension.count() is None:
                function = "randint" if dimension.kind == "lograndint" else "quniform"
                raise _mistake(
                    dimension.path,
                    f"{dimension} has no grid; write choice([a, b]) or {function}(low, high, step)",
                )
        size = self.size() or 0
        if size > GRID_LIMIT:
            raise UserError(
                f"tune.space: a grid of {size:,} points, more than {GRID_LIMIT:,}; make it coarser"
            )

    def _try(self, base: Config) -> None:
        """Apply all points of a small space, else many, to find settings that clash."""
        size = self.size()
        for point in self._drawn() if size is None or size > _TRIED else self.grid():
            try:
                self.apply(base, point)
            except UserError as error:
                values = ", ".join(f"{path}={_text(value)}" for path, value in point.items())
                reason = str(error).removeprefix("configuration: ")
                raise UserError(f"tune.space: the point {values} is refused: {reason}") from None

    def _drawn(self) -> Iterator[dict[str, Any]]:
        random = Random(0)
        for _ in range(_TRIED):
            point: dict[str, Any] = {}
            for dimension in self.dimensions:
                if dimension.counts(point):
                    point[dimension.path] = dimension.draw(random)
            yield point


def merged(base: Config, point: Mapping[str, Any]) -> Config:
    """Return settings with the values of a point, of any space; raises as `resolve_config`."""
    tree = base.model_dump()
    for path, value in point.items():
        if path not in field_paths():
            raise UserError(f"point: unknown key {path}{nearest_path(path, field_paths())}")
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch[parent]
        branch[name] = value
    return resolve_config(tree)


def _mistake(path: str, text: str) -> UserError:
    return UserError(f"tune.space: {path}: {text}")


def _written(path: str, value: Any) -> tuple[str, Any]:  # noqa: ANN401 - unchecked YAML
    """Return the function as text and the unchecked `when` of an entry of `tune.space`."""
    if not isinstance(value, Mapping):
        return _function(path, value), {}
    mended = _mended(value)
    for key in mended:
        if key not in ("space", "when"):
            hint = _close(str(key), ("space", "when"), "the keys are space and when")
            raise _mistake(path, f"unknown key {key}; {hint}")
    if "space" not in mended:
        raise _mistake(path, "space is missing; write {space: 'uniform(0, 1)', when: …}")
    return _function(path, mended["space"]), mended.get("when", {})


def _mended(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """Put together `{space: uniform(0, 1)}`: between braces YAML ends a text at a comma."""
    mended: dict[Any, Any] = {}
    for key, value in tree.items():
        text = mended.get("space")
        if value is None and isinstance(text, str) and text.count("(") > text.count(")"):
            mended["space"] = f"{text}, {key}"
        else:
            mended[key] = value
    return mended


def _function(path: str, value: Any) -> str:  # noqa: ANN401 - unchecked YAML
    if isinstance(value, str):
        return value.strip()
    example = f"choice({_text(value)})" if isinstance(value, list) else "uniform(0, 0.5)"
    raise _mistake(path, f"{_text(value)} is no function; write one such as {example}")


def _dimension(path: str, text: str, base: Config) -> Dimension:
    annotation = _searchable(path)
    kind, arguments = _call(path, text)
    if kind == "choice":
        return Dimension(path, kind, choices=_choices(path, arguments[0], base))
    if path.startswith("image."):
        raise _mistake(
            path, f"{kind}: only choice([a, b]), since the set is decoded anew for every value"
        )
    number = _number_type(annotation)
    if number is None:
        raise _mistake(path, f"{kind}: the field takes no range of numbers; use choice([a, b])")
    if number is int and kind in _WHOLE:
        raise _mistake(path, f"{kind}: the field takes whole numbers; use {_WHOLE[kind]}")
    low, high, step = _range(path, kind, arguments)
    for end in (low, high):
        _taken(path, end, base)
    return Dimension(path, kind, low, high, step)


def _searchable(path: str) -> Any:  # noqa: ANN401 - any annotation
    """Return the type of a field; refuse what is none or cannot be searched."""
    if path not in field_paths():
        raise UserError(f"tune.space: unknown key {path}{nearest_path(str(path), field_paths())}")
    annotation: Any = Config
    for key in path.split("."):
        annotation = annotation.model_fields[key].annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        example = f"{path}.{next(iter(annotation.model_fields))}"
        raise _mistake(path, f"a section, not a field; name its fields, such as {example}")
    if path in FIXED or path.startswith(("run.", "tracking.")):
        raise _mistake(
            path, "not searched: it says where or how a run is kept, or what its score means"
        )
    return annotation


def _number_type(annotation: Any) -> type | None:  # noqa: ANN401 - any annotation
    if annotation in (int, float):
        return annotation  # type: ignore[no-any-return]
    literal = get_origin(annotation) is Literal
    return int if literal and all(type(value) is int for value in get_args(annotation)) else None


def _call(path: str, text: str) -> tuple[str, list[Any]]:
    """Take a text such as `uniform(0, 1)` apart."""
    match = re.fullmatch(r"(\w+)\s*\((.*)\)", text, re.DOTALL)
    if match is None:
        braces = "; between braces, put it in quotes" if "(" in text else ""
        raise _mistake(path, f"{text} is no function such as uniform(0, 0.5){braces}")
    name, inner = match.groups()
    try:
        arguments: list[Any] = parse_yaml(f"arguments: [{inner}]", path)["arguments"]
    except UserError:
        raise _mistake(path, f"{text}: what is in the brackets cannot be read") from None
    if name.removeprefix("q") in _LOGARITHMIC and (name[0] == "q" or len(arguments) == 3):
        raise _mistake(
            path,
            f"{text}: a logarithmic scale has no step; write {name.removeprefix('q')}(low, high) "
            "or choice([a, b])",
        )
    if name not in FUNCTIONS:
        hint = _close(name, FUNCTIONS, f"the functions are {', '.join(FUNCTIONS)}")
        raise _mistake(path, f"unknown function {name}; {hint}")
    if len(arguments) not in _ARGUMENTS.get(name, (2,)):
        raise _mistake(path, f"{text}: wrong number of arguments; write {FUNCTIONS[name]}")
    return name, arguments


def _choices(path: str, values: Any, base: Config) -> tuple[Any, ...]:  # noqa: ANN401 - YAML
    if not isinstance(values, list):
        raise _mistake(path, f"choice({_text(values)}): write its values as a list, choice([a, b])")
    if not values:
        raise _mistake(path, "choice([]) has no values; name some")
    choices: list[Any] = []
    for value in values:
        choice = _taken(path, value, base)
        if choice in choices:
            raise _mistake(path, f"choice: {_text(value)} is given twice")
        choices.append(choice)
    return tuple(choices)


def _range(
    path: str, kind: str, arguments: Sequence[Any]
) -> tuple[float | int, float | int, float | int | None]:
    whole = kind in ("randint", "lograndint")
    low, high, *steps = (_number(path, kind, argument, whole) for argument in arguments)
    if low >= high:
        raise _mistake(path, f"{kind}: low {_text(low)} is not below high {_text(high)}")
    if kind in _LOGARITHMIC and low <= 0:
        raise _mistake(path, f"{kind}: low {_text(low)}: a logarithmic scale begins above 0")
    step = steps[0] if steps else 1 if kind == "randint" else None
    if step is not None:
        _check_step(path, kind, low, high, step)
    return low, high, step


def _number(path: str, kind: str, argument: Any, whole: bool) -> float | int:  # noqa: ANN401
    number = _readings(argument)[1]
    if not _is_number(number):
        raise _mistake(path, f"{kind}: {_text(argument)} is not a number")
    if not abs(number) < (_LARGEST if whole else math.inf):  # also refuses NaN
        raise _mistake(path, f"{kind}: {_text(argument)} is too large or no number")
    if not whole:
        return float(number)
    if number != int(number):
        raise _mistake(path, f"{kind}: {_text(number)} is not a whole number")
    return int(number)


def _check_step(path: str, kind: str, low: float, high: float, step: float) -> None:
    if step <= 0:
        raise _mistake(path, f"{kind}: step {_text(step)}: must be above 0")
    if (high - low) / step >= _LARGEST:
        raise _mistake(path, f"{kind}: step {_text(step)}: too fine; write uniform(low, high)")
    below = (_exact(high) - _exact(low)) // _exact(step)
    ends = [_exact(low) + _exact(step) * count for count in (below, below + 1)]
    if _exact(high) != ends[0]:
        fitting = " or ".join(_text(float(end)) for end in ends if end > _exact(low))
        raise _mistake(
            path,
            f"{kind}: step {_text(step)} does not lead from {_text(low)} to {_text(high)}; "
            f"end at {fitting}",
        )


def _taken(path: str, value: Any, base: Config) -> Any:  # noqa: ANN401 - a field's value
    """Return what a field makes of a value; raises UserError when it, by itself, refuses it."""
    *parents, name = path.split(".")
    section: Section = base
    for parent in parents:
        section = getattr(section, parent)
    for reading in _readings(value):
        try:
            return getattr(type(section).model_validate({**dict(section), name: reading}), name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
    raise _mistake(path, f"{_text(value)}: {reason[0].lower()}{reason[1:]}")


def _conditions(
    path: str,
    when: Any,  # noqa: ANN401 - unchecked YAML
    dimensions: Mapping[str, Dimension],
) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping):
        raise _mistake(path, f"when: {_text(when)} is no mapping such as {{train.loss: focal}}")
    conditions = {}
    for other, value in when.items():
        if other not in dimensions:
            hint = _close(str(other), dimensions, "a condition names another key of tune.space")
            raise _mistake(path, f"when: {other} is not searched; {hint}")
        conditions[other] = _met(path, dimensions[other], value)
    return conditions


def _met(path: str, other: Dimension, value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - YAML
    """Return the values of another dimension that a `when` names: one, or a list."""
    if other.kind in ("uniform", "loguniform"):
        raise _mistake(
            path, f"when: {other.path} is continuous; a condition needs a choice or whole numbers"
        )
    try:
        return (other.find(value),)
    except ValueError as error:
        if not isinstance(value, list):
            raise _mistake(path, f"when: {other.path}: {error}") from None
    if not value:
        raise _mistake(path, f"when: {other.path}: an empty list; name a value")
    return tuple(dict.fromkeys(_met(path, other, one)[0] for one in value))


def _sorted(dimensions: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """Move dimensions behind those that their `when` names, otherwise keep the order."""
    waiting = {dimension.path: dimension for dimension in dimensions}
    done: dict[str, Dimension] = {}
    while waiting:
        ready = [path for path, dimension in waiting.items() if dimension.when.keys() <= set(done)]
        if not ready:
            circle = " -> ".join(_circle(waiting))
            raise UserError(f"tune.space: when goes in a circle: {circle}; leave one out")
        done[ready[0]] = waiting.pop(ready[0])
    return tuple(done.values())


def _circle(waiting: Mapping[str, Dimension]) -> list[str]:
    """Return a circle among dimensions of which each waits for another one."""
    path = next(iter(waiting))
    walked: list[str] = []
    while path not in walked:
        walked.append(path)
        path = next(other for other in waiting[path].when if other in waiting)
    return [*walked[walked.index(path) :], path]


def _readings(value: Any) -> tuple[Any, Any]:  # noqa: ANN401 - YAML
    """Return a value as it is and with texts such as 1e-4, no number in YAML 1.1, as numbers."""
    if isinstance(value, list | tuple):
        pairs = [_readings(part) for part in value]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return value, float(value)
    return value, value


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - fields' values
    """Return whether two values are equal, True and 1 not being."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _exact(number: float | None) -> Decimal:
    return Decimal(str(number))


def _condition(dimension: Dimension) -> str:
    return " and ".join(
        f"{path} is {' or '.join(map(_text, values))}" for path, values in dimension.when.items()
    )


def _close(word: str, known: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else otherwise


def _text(value: Any) -> str:  # noqa: ANN401 - YAML
    """Write a value as a person would in YAML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float):
        return f"{value:.12g}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
