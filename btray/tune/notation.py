"""How a search's dimensions are written in YAML: read, and held against the fields."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import ValidationError

from btray.config import Config, Section, field_paths, nearest_path, parse_yaml
from btray.errors import UserError
from btray.tune.dimension import LOGARITHMIC, Dimension, exact, is_number, readings, text_of

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
_LARGEST: Final = 2**53
"""From here on not every whole number is a double."""


def read_dimensions(tree: Mapping[str, Any], base: Config) -> tuple[Dimension, ...]:
    """Return the dimensions of `tune.space`, each behind those that its `when` names.

    Raises:
        UserError: what is written is not a space over fields of the tree, or a value is refused
            by its field.

    """
    dimensions, conditions = {}, {}
    for path, value in tree.items():
        text, conditions[path] = _written(path, value)
        dimensions[path] = _dimension(path, text, base)
    return _sorted(
        replace(dimension, when=_conditions(path, conditions[path], dimensions))
        for path, dimension in dimensions.items()
    )


def mistake(path: str, text: str) -> UserError:
    """Return what to raise for an entry of `tune.space`."""
    return UserError(f"tune.space: {path}: {text}")


def _written(path: str, value: Any) -> tuple[str, Any]:  # noqa: ANN401 - unchecked YAML
    """Return the function as text and the unchecked `when` of an entry of `tune.space`."""
    if not isinstance(value, Mapping):
        return _function(path, value), {}
    mended = _mended(value)
    for key in mended:
        if key not in ("space", "when"):
            hint = close(str(key), ("space", "when"), "the keys are space and when")
            raise mistake(path, f"unknown key {key}; {hint}")
    if "space" not in mended:
        raise mistake(path, "space is missing; write {space: 'uniform(0, 1)', when: …}")
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
    example = f"choice({text_of(value)})" if isinstance(value, list) else "uniform(0, 0.5)"
    raise mistake(path, f"{text_of(value)} is no function; write one such as {example}")


def _dimension(path: str, text: str, base: Config) -> Dimension:
    annotation = _searchable(path)
    kind, arguments = _call(path, text)
    if kind == "choice":
        return Dimension(path, kind, choices=_choices(path, arguments[0], base))
    if path.startswith("image."):
        raise mistake(
            path, f"{kind}: only choice([a, b]), since the set is decoded anew for every value"
        )
    number = _number_type(annotation)
    if number is None:
        raise mistake(path, f"{kind}: the field takes no range of numbers; use choice([a, b])")
    if number is int and kind in _WHOLE:
        raise mistake(path, f"{kind}: the field takes whole numbers; use {_WHOLE[kind]}")
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
        raise mistake(path, f"a section, not a field; name its fields, such as {example}")
    if path in FIXED or path.startswith(("run.", "tracking.")):
        raise mistake(
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
        raise mistake(path, f"{text} is no function such as uniform(0, 0.5){braces}")
    name, inner = match.groups()
    try:
        arguments: list[Any] = parse_yaml(f"arguments: [{inner}]", path)["arguments"]
    except UserError:
        raise mistake(path, f"{text}: what is in the brackets cannot be read") from None
    if name.removeprefix("q") in LOGARITHMIC and (name[0] == "q" or len(arguments) == 3):
        raise mistake(
            path,
            f"{text}: a logarithmic scale has no step; write {name.removeprefix('q')}(low, high) "
            "or choice([a, b])",
        )
    if name not in FUNCTIONS:
        hint = close(name, FUNCTIONS, f"the functions are {', '.join(FUNCTIONS)}")
        raise mistake(path, f"unknown function {name}; {hint}")
    if len(arguments) not in _ARGUMENTS.get(name, (2,)):
        raise mistake(path, f"{text}: wrong number of arguments; write {FUNCTIONS[name]}")
    return name, arguments


def _choices(path: str, values: Any, base: Config) -> tuple[Any, ...]:  # noqa: ANN401 - YAML
    if not isinstance(values, list):
        raise mistake(
            path, f"choice({text_of(values)}): write its values as a list, choice([a, b])"
        )
    if not values:
        raise mistake(path, "choice([]) has no values; name some")
    choices: list[Any] = []
    for value in values:
        choice = _taken(path, value, base)
        if choice in choices:
            raise mistake(path, f"choice: {text_of(value)} is given twice")
        choices.append(choice)
    return tuple(choices)


def _range(
    path: str, kind: str, arguments: Sequence[Any]
) -> tuple[float | int, float | int, float | int | None]:
    whole = kind in ("randint", "lograndint")
    low, high, *steps = (_number(path, kind, argument, whole) for argument in arguments)
    if low >= high:
        raise mistake(path, f"{kind}: low {text_of(low)} is not below high {text_of(high)}")
    if kind in LOGARITHMIC and low <= 0:
        raise mistake(path, f"{kind}: low {text_of(low)}: a logarithmic scale begins above 0")
    step = steps[0] if steps else 1 if kind == "randint" else None
    if step is not None:
        _check_step(path, kind, low, high, step)
    return low, high, step


def _number(path: str, kind: str, argument: Any, whole: bool) -> float | int:  # noqa: ANN401
    number = readings(argument)[1]
    if not is_number(number):
        raise mistake(path, f"{kind}: {text_of(argument)} is not a number")
    if not abs(number) < (_LARGEST if whole else math.inf):  # also refuses NaN
        raise mistake(path, f"{kind}: {text_of(argument)} is too large or no number")
    if not whole:
        return float(number)
    if number != int(number):
        raise mistake(path, f"{kind}: {text_of(number)} is not a whole number")
    return int(number)


def _check_step(path: str, kind: str, low: float, high: float, step: float) -> None:
    if step <= 0:
        raise mistake(path, f"{kind}: step {text_of(step)}: must be above 0")
    if (high - low) / step >= _LARGEST:
        raise mistake(path, f"{kind}: step {text_of(step)}: too fine; write uniform(low, high)")
    below = (exact(high) - exact(low)) // exact(step)
    ends = [exact(low) + exact(step) * count for count in (below, below + 1)]
    if exact(high) != ends[0]:
        fitting = " or ".join(text_of(float(end)) for end in ends if end > exact(low))
        raise mistake(
            path,
            f"{kind}: step {text_of(step)} does not lead from {text_of(low)} to {text_of(high)}; "
            f"end at {fitting}",
        )


def _taken(path: str, value: Any, base: Config) -> Any:  # noqa: ANN401 - a field's value
    """Return what a field makes of a value; raises UserError when it, by itself, refuses it."""
    *parents, name = path.split(".")
    section: Section = base
    for parent in parents:
        section = getattr(section, parent)
    for reading in readings(value):
        try:
            return getattr(type(section).model_validate({**dict(section), name: reading}), name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
    raise mistake(path, f"{text_of(value)}: {reason[0].lower()}{reason[1:]}")


def _conditions(
    path: str,
    when: Any,  # noqa: ANN401 - unchecked YAML
    dimensions: Mapping[str, Dimension],
) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping):
        raise mistake(path, f"when: {text_of(when)} is no mapping such as {{train.loss: focal}}")
    conditions = {}
    for other, value in when.items():
        if other not in dimensions:
            hint = close(str(other), dimensions, "a condition names another key of tune.space")
            raise mistake(path, f"when: {other} is not searched; {hint}")
        conditions[other] = _met(path, dimensions[other], value)
    return conditions


def _met(path: str, other: Dimension, value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - YAML
    """Return the values of another dimension that a `when` names: one, or a list."""
    if other.kind in ("uniform", "loguniform"):
        raise mistake(
            path, f"when: {other.path} is continuous; a condition needs a choice or whole numbers"
        )
    try:
        return (other.find(value),)
    except ValueError as error:
        if not isinstance(value, list):
            raise mistake(path, f"when: {other.path}: {error}") from None
    if not value:
        raise mistake(path, f"when: {other.path}: an empty list; name a value")
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


def close(word: str, known: Iterable[str], otherwise: str) -> str:
    """Ask for the nearest of the known words, or say something else."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else otherwise
