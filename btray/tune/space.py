"""Which settings a search varies and between which values: `tune.space`, read and checked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, Self

from btray.config import Config, field_paths, nearest_path, resolve_config
from btray.errors import UserError
from btray.tune.dimension import Dimension, text_of
from btray.tune.notation import close, mistake, read_dimensions

if TYPE_CHECKING:
    import optuna

GRID_LIMIT: Final = 100_000
"""Most points a grid may have."""
_TRIED: Final = 200
"""Points that are tried before a search starts."""


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
        space = cls(read_dimensions(tree, base))
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
                    f"tune.points: {path} counts only when {dimension.condition()}; leave it out"
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
            hint = close(path, by_path, f"tune.space has {', '.join(by_path)}")
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
                raise UserError(
                    f"{where}: {path}: {text_of(value)} is not in {dimension}"
                ) from None
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
                raise mistake(
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
                values = ", ".join(f"{path}={text_of(value)}" for path, value in point.items())
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
