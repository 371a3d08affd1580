"""The one deployment: HTTP and gRPC of a replica, with the models in its own process."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

from btray.errors import UserError
from btray.serve.auth import Authenticator
from btray.serve.batcher import Batcher, Timings
from btray.serve.config import ModelServed, ServeConfig
from btray.serve.http import Gate, build_app
from btray.serve.log import LOGGER, event
from btray.serve.models import Models, Source
from btray.serve.monitor import FLUSH_S, Monitor
from btray.serve.rpc import Rpc
from btray.serve.service import Service
from btray.serve.sources import REGISTERED, identify, registered_version

MODELS: Final = "models"


class Classifier(Rpc):
    """Answers over HTTP (ASGI) and gRPC (the methods of `Rpc`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = ServeConfig.model_validate(config)
        logging.getLogger("ray.serve").setLevel(logging.INFO)
        # The event loop and the engine's thread take turns; 5 ms, the default, is a whole answer.
        sys.setswitchinterval(0.0005)
        self.monitor = Monitor()
        self.settings = settings
        models = Models(self._identify, self._load, settings.engine.loaded_bundles)
        authenticator = Authenticator(settings.auth)
        self.service = Service(
            models, settings.limits, authenticator, self.monitor, settings.explain
        )
        self._watch: asyncio.Task[None] | None = None
        self._flushing: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Gate:
        """Return the ASGI application."""
        return build_app(self.service, tells_id=False)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take up a new list of models; what is in work keeps its own."""
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        served = [ModelServed.model_validate(model) for model in user_config[MODELS]]
        try:
            known = await self._aliases(served)
            await self.service.models.configure(served)
        except Exception:
            if not self.service.models.names:
                raise
            # Ray would stop this replica: the old list goes on answering instead.
            LOGGER.exception("the new models cannot be taken up; the old ones stay")
            self.monitor.error("models_not_taken_up")
            return
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if known:
            self._watch = asyncio.create_task(self._follow(served, known))

    async def _aliases(self, served: Sequence[ModelServed]) -> dict[str, str]:
        """Return which bundle stands behind each name of the registry now."""
        uris = {uri for model in served for uri in model.bundles if uri.startswith(REGISTERED)}
        tracking = self.settings.tracking
        return {uri: await asyncio.to_thread(registered_version, uri, tracking) for uri in uris}

    async def _follow(self, served: Sequence[ModelServed], known: dict[str, str]) -> None:
        """Take up what the registry's aliases name, for as long as this list is served."""
        while True:
            await asyncio.sleep(self.settings.watch_s)
            try:
                found = await self._aliases(served)
                if found != known:
                    await self.service.models.configure(served)
                    known = found
                    event("models changed", versions=sorted(found.values()))
            except Exception as error:  # noqa: BLE001 - the registry may be away: told, tried again
                event("registry away", logging.WARNING, error=repr(error))

    def check_health(self) -> None:
        """Raise RuntimeError where an engine is broken: Ray Serve then replaces this replica."""
        if not self.service.models.healthy:
            raise RuntimeError("an engine fails; see the log")

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self.monitor.waiting(self.service.waiting)
            self.monitor.flush()

    def _identify(self, uri: str) -> Source:
        return identify(uri, self.settings.tracking)

    def _load(self, source: Source) -> Batcher:
        from btray.core.engine import open_engine

        engine = self.settings.engine
        # Ray hides no GPU from a replica that reserved none.
        device = engine.device or (None if self.settings.replicas.gpus else "cpu")
        opened = open_engine(source.uri, device=device, threads=engine.threads)
        if opened.version != source.version:
            raise UserError(f"{source.uri}: not the bundle {source.version} any more; deploy again")
        return Batcher(opened, engine.max_batch, engine.decoders, self._count)

    def _count(self, timings: Timings) -> None:
        self.monitor.batch(timings.size, timings.waiting_s, timings.decode_s, timings.infer_s)
