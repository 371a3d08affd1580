"""Which bundle answers a request: names, versions, canaries and shadows of one replica."""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from btray.core.card import Card
from btray.serve.batcher import Batcher
from btray.serve.config import ModelServed
from btray.serve.errors import ServeError


@dataclass(frozen=True)
class Source:
    """A bundle that may be asked, known by its card; its weights are loaded when it is."""

    uri: str
    card: Card
    version: str


@dataclass(frozen=True)
class Model:
    """A name with the bundles behind it."""

    name: str
    usual: Source
    canary: Source | None
    percent: float
    shadow: Source | None
    versions: dict[str, Source]
    """All that may be asked for by version."""

    def choose(self, version: str | None, draw: float) -> Source:
        """Return who answers; `draw` is a random number in 0..100.

        Raises:
            ServeError: a version that is not served.

        """
        if version is None or version == "":
            return self.canary if self.canary and draw < self.percent else self.usual
        try:
            return self.versions[version]
        except KeyError:
            known = ", ".join(self.versions)
            raise ServeError(
                "not_found", f"model {self.name} has no version {version!r}; it has {known}"
            ) from None


Identify = Callable[[str], Source]
"""Reads a bundle's card at a URI."""
Load = Callable[[Source], Batcher]
"""Loads its weights; slow."""


@dataclass
class _Loaded:
    batcher: "asyncio.Future[Batcher]"
    users: int = 0
    left: bool = False
    """Taken out of use: closed by its last user."""


class Lease:
    """A loaded bundle, which is not unloaded while it is in use."""

    def __init__(self, models: "Models", source: Source, loaded: _Loaded) -> None:
        self._models, self.source, self._loaded = models, source, loaded

    async def __aenter__(self) -> Batcher:
        self._loaded.users += 1
        try:
            return await asyncio.shield(self._loaded.batcher)
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        self._loaded.users -= 1
        if self._loaded.left and not self._loaded.users:
            _close(self._loaded)


@dataclass
class Models:
    """All names of a replica, and the bundles that are loaded.

    `configure` makes the new state whole, its usual bundles loaded, before it takes the place of
    the old one; requests in work keep what they began with. For one event loop.
    """

    identify: Identify
    load: Load
    capacity: int
    """Bundles kept loaded; those that are in use or answer usually may be more."""
    dice: random.Random = field(default_factory=random.Random)
    names: dict[str, Model] = field(default_factory=dict)
    """The first answers where no name is given."""
    _loaded: "OrderedDict[str, _Loaded]" = field(default_factory=OrderedDict)

    async def configure(self, served: Sequence[ModelServed]) -> None:
        """Take up a new list of models.

        Raises:
            UserError: a bundle that cannot be opened; the old list stays.

        """
        sources: dict[str, Source] = {}
        for uri in dict.fromkeys(uri for model in served for uri in model.bundles):
            sources[uri] = await asyncio.to_thread(self.identify, uri)
        names = {chosen.name: _model(chosen, sources) for chosen in served}
        for model in names.values():
            for source in (model.usual, model.canary, model.shadow):
                if source is not None:
                    await asyncio.shield(self._get(source).batcher)
        self.names = names
        self._trim()

    def model(self, name: str | None) -> Model:
        """Return a model by name, the first without one; raises ServeError `not_found`."""
        if not self.names:
            raise ServeError("unavailable", "no model is loaded yet", retry_after_s=1)
        if not name:
            return next(iter(self.names.values()))
        try:
            return self.names[name]
        except KeyError:
            known = ", ".join(self.names)
            raise ServeError(
                "not_found", f"no model is called {name!r}; there is {known}"
            ) from None

    def choose(self, name: str | None, version: str | None) -> tuple[Model, Source]:
        """Return a model and who answers for it this time; raises ServeError `not_found`."""
        model = self.model(name)
        return model, model.choose(version, self.dice.uniform(0, 100))

    def lease(self, source: Source) -> Lease:
        """Return a bundle for use in `async with`; it is loaded first where it is not."""
        return Lease(self, source, self._get(source))

    def is_loaded(self, source: Source) -> bool:
        """Whether a bundle answers without being loaded first."""
        loaded = self._loaded.get(source.version)
        return loaded is not None and loaded.batcher.done() and not loaded.batcher.exception()

    @property
    def waiting(self) -> int:
        """Images that wait in all bundles."""
        return sum(
            loaded.batcher.result().waiting
            for loaded in self._loaded.values()
            if loaded.batcher.done() and not loaded.batcher.exception()
        )

    def _get(self, source: Source) -> _Loaded:
        loaded = self._loaded.get(source.version)
        if loaded is None or (loaded.batcher.done() and loaded.batcher.exception()):
            loaded = _Loaded(asyncio.ensure_future(asyncio.to_thread(self.load, source)))
            self._loaded[source.version] = loaded
            self._trim()
        self._loaded.move_to_end(source.version)
        return loaded

    def _trim(self) -> None:
        """Unload those longest unused that do not usually answer."""
        kept = {
            source.version
            for model in self.names.values()
            for source in (model.usual, model.canary, model.shadow)
            if source is not None
        }
        for version in list(self._loaded)[:-1]:
            if len(self._loaded) <= self.capacity:
                break
            if version not in kept:
                loaded = self._loaded.pop(version)
                loaded.left = True
                if not loaded.users:
                    _close(loaded)


def _close(loaded: _Loaded) -> None:
    def close(batcher: "asyncio.Future[Batcher]") -> None:
        if not batcher.cancelled() and not batcher.exception():
            batcher.result().close()

    if loaded.batcher.done():
        close(loaded.batcher)
    else:
        loaded.batcher.add_done_callback(close)


def _model(served: ModelServed, sources: dict[str, Source]) -> Model:
    found = [sources[uri] for uri in served.bundles]
    return Model(
        name=served.name,
        usual=sources[served.bundle],
        canary=sources[served.canary.bundle] if served.canary else None,
        percent=served.canary.percent if served.canary else 0.0,
        shadow=sources[served.shadow] if served.shadow else None,
        versions={source.version: source for source in found},
    )
