"""Which bundle answers a request: names, versions, canaries and shadows of one replica."""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from btray.core.card import Card
from btray.serve.batcher import Batcher
from btray.serve.config import ModelServed
from btray.serve.errors import ServeError
from btray.serve.log import LOGGER

_AGAIN_S = 5.0
"""After a bundle could not be loaded, how long until it is tried again, in seconds."""


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

    @property
    def asked(self) -> tuple[Source, ...]:
        """All that answer without being asked for by version."""
        found = (self.usual, self.canary, self.shadow)
        return tuple(source for source in found if source is not None)

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
    begun: float = field(default_factory=time.monotonic)

    @property
    def failed(self) -> bool:
        return self.batcher.done() and self.batcher.exception() is not None


class Lease:
    """A loaded bundle, which is not unloaded while it is in use."""

    def __init__(self, source: Source, loaded: _Loaded, deadline: float) -> None:
        self.source, self._loaded, self._deadline = source, loaded, deadline

    async def __aenter__(self) -> Batcher:
        self._loaded.users += 1
        if self._loaded.batcher.done() and not self._loaded.failed:
            return self._loaded.batcher.result()
        try:
            left = self._deadline - time.monotonic()
            return await asyncio.wait_for(asyncio.shield(self._loaded.batcher), max(0.0, left))
        except BaseException as error:
            self._release()
            if isinstance(error, TimeoutError):
                message = "the model is not loaded in the time that was given"
                raise ServeError("deadline_exceeded", message) from None
            if isinstance(error, Exception):
                LOGGER.error("%s cannot be loaded", self.source.version, exc_info=error)
                message = f"version {self.source.version} cannot be loaded; see the server's log"
                raise ServeError("unavailable", message, retry_after_s=_AGAIN_S) from None
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
    _coming: frozenset[str] = frozenset()
    """Versions of a list that is being taken up."""

    async def configure(self, served: Sequence[ModelServed]) -> None:
        """Take up a new list of models.

        Raises:
            UserError: a bundle that cannot be opened; the old list stays.

        """
        sources: dict[str, Source] = {}
        for uri in dict.fromkeys(uri for model in served for uri in model.bundles):
            sources[uri] = await asyncio.to_thread(self.identify, uri)
        names = {chosen.name: _model(chosen, sources) for chosen in served}
        usual = {source.version: source for model in names.values() for source in model.asked}
        self._coming = frozenset(usual)
        try:
            for source in usual.values():
                await asyncio.shield(self._get(source, again=True).batcher)
            self.names = names
        finally:
            self._coming = frozenset()
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

    def lease(self, source: Source, deadline: float) -> Lease:
        """Return a bundle for use in `async with`, loaded first where it is not.

        Entering raises ServeError where it is not loaded by the deadline (`time.monotonic`), or
        cannot be.
        """
        return Lease(source, self._get(source), deadline)

    @property
    def healthy(self) -> bool:
        """Whether all engines that are loaded answer."""
        return all(
            loaded.batcher.result().healthy
            for loaded in self._loaded.values()
            if loaded.batcher.done() and not loaded.failed
        )

    def _get(self, source: Source, again: bool = False) -> _Loaded:
        loaded = self._loaded.get(source.version)
        stale = loaded is not None and time.monotonic() > loaded.begun + _AGAIN_S
        if loaded is None or (loaded.failed and (again or stale)):
            loaded = _Loaded(asyncio.ensure_future(asyncio.to_thread(self.load, source)))
            self._loaded[source.version] = loaded
            self._trim()
        self._loaded.move_to_end(source.version)
        return loaded

    def _trim(self) -> None:
        """Unload those longest unused that do not usually answer."""
        kept = {source.version for model in self.names.values() for source in model.asked}
        kept |= self._coming
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
