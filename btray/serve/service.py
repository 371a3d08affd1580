"""What a replica does with a request, whichever way it came."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from btray.core.answers import answer_row
from btray.errors import UserError
from btray.serve.auth import Authenticator, Principal, Refused
from btray.serve.batcher import Answer, Batcher
from btray.serve.config import LimitsConfig
from btray.serve.errors import ServeError
from btray.serve.front import Front
from btray.serve.log import event
from btray.serve.models import Model, Models, Source
from btray.serve.monitor import Monitor
from btray.serve.tracing import span
from btray.serve.v2 import InferRequest, InferResponse, respond

_EXPLANATIONS: Final = 8
"""Explanations that may wait or be computed in a replica."""

Image = bytes | NDArray[np.uint8]
"""Encoded, or a prepared square [size, size]."""

_REFUSALS = {
    "unauthenticated": "unauthenticated",
    "forbidden": "forbidden",
    "rate": "too_many_requests",
    "concurrency": "too_many_requests",
}


@dataclass(frozen=True)
class Answered:
    """Answers of one bundle to the images of a request."""

    model: Model
    source: Source
    answers: Sequence[Answer | ServeError]
    explanations: Sequence[bytes | None]
    """A PNG each, where they were asked for."""

    def row(self, index: int) -> dict[str, object]:
        """Return the JSON row of one image."""
        answer = self.answers[index]
        if isinstance(answer, ServeError):
            return {"error": {"code": answer.code, "message": str(answer)}}
        return answer_row(answer.prediction, self.model.name, self.source.version)


class Service:
    """Models, limits and counters of one replica."""

    def __init__(
        self,
        models: Models,
        limits: LimitsConfig,
        authenticator: Authenticator,
        monitor: Monitor,
        explain: bool = True,
    ) -> None:
        self.models, self.limits, self.monitor = models, limits, monitor
        self.authenticator = authenticator
        self.explain = explain
        self.waiting = 0
        """Images in work, those that wait for a bundle to be loaded among them."""
        self._front = Front.from_environment()
        self._explainer = ThreadPoolExecutor(1, "explain")
        self._explaining = 0
        self._shadows: set[asyncio.Task[None]] = set()

    def check_front(self, secret: str | None) -> None:
        """Refuse a request that did not come through the data plane; raises ServeError."""
        try:
            self._front.check(secret)
        except Refused as refused:
            raise refusal(refused) from None

    def identify(self, authorization: str | None, api_key: str | None) -> Principal:
        """Return who asks; raises ServeError."""
        try:
            return self.authenticator.authenticate(authorization, api_key, time.time())
        except Refused as refused:
            raise refusal(refused) from None

    def charge(self, principal: Principal) -> None:
        """Count one more request of a stream; raises ServeError above the rate."""
        try:
            self.authenticator.charge(principal)
        except Refused as refused:
            raise refusal(refused) from None

    @contextmanager
    def admitted(self, principal: Principal) -> Iterator[None]:
        """Count a request as long as it is in work; raises ServeError above a limit."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.authenticator.admit(principal))
            except Refused as refused:
                raise refusal(refused) from None
            yield

    def deadline(self, seconds: float | None) -> float:
        """Return until when there must be an answer, by `time.monotonic`."""
        limit = self.limits.deadline_s
        return time.monotonic() + (limit if seconds is None else min(seconds, limit))

    async def classify(
        self,
        images: Sequence[Image],
        name: str | None,
        version: str | None,
        deadline: float,
        explain: bool = False,
    ) -> Answered:
        """Answer for the images of a request, all by the same bundle.

        Raises:
            ServeError: no such model, too many images, too much to do, or no time left; what is
                wrong with one image of several is in its place among the answers.

        """
        if explain and not self.explain:
            raise ServeError("not_offered", "explanations are turned off on this server")
        model, source = self.models.choose(name, version)
        return await self._classify(model, source, images, deadline, explain)

    async def infer(
        self,
        name: str,
        version: str | None,
        parse: Callable[[int, int], InferRequest],
        deadline: float,
    ) -> InferResponse:
        """Answer a request of the Open Inference Protocol.

        Args:
            name: Of the model.
            version: Of the model; None or empty for who usually answers.
            parse: Reads the request, given the model's size and the most images.
            deadline: By `time.monotonic`.

        Raises:
            ServeError: as `classify`, and for one image that cannot be used: the protocol has
                no place for the answers to the others.
            ProtocolError: the request is not as the protocol has it.

        """
        model, source = self.models.choose(name, version)
        request = parse(source.card.image.size, self.limits.images)
        answered = await self._classify(model, source, request.images, deadline)
        answers = [_usable(index, answer) for index, answer in enumerate(answered.answers)]
        return respond(
            request,
            model.name,
            source.version,
            source.card.class_names,
            [answer.prediction for answer in answers],
            np.stack([answer.logits for answer in answers]),
        )

    async def _classify(
        self,
        model: Model,
        source: Source,
        images: Sequence[Image],
        deadline: float,
        explain: bool = False,
    ) -> Answered:
        self._check(images)
        self.waiting += len(images)
        try:
            with span("classify", model=model.name, version=source.version, images=len(images)):
                async with self.models.lease(source, deadline) as batcher:
                    answers = await self._ask(batcher, images, deadline)
        finally:
            self.waiting -= len(images)
        pictures: Sequence[bytes | None] = [None] * len(images)
        if explain:
            pictures = await self._explanations(source, images, answers, deadline)
        self._count(model, source, batcher, answers)
        if model.shadow is not None and model.shadow is not source:
            self._follow(model, model.shadow, images, answers)
        return Answered(model, source, answers, pictures)

    def _check(self, images: Sequence[Image]) -> None:
        limits = self.limits
        if not images:
            raise ServeError("empty", "no image in the request")
        if len(images) > limits.images:
            raise ServeError(
                "too_large", f"{len(images)} images; the limit is {limits.images} in a request"
            )
        if self.waiting and self.waiting + len(images) > limits.waiting:
            raise ServeError("overloaded", "too many images wait; come again", retry_after_s=1)

    async def _ask(
        self, batcher: Batcher, images: Sequence[Image], deadline: float
    ) -> list[Answer | ServeError]:
        if len(images) == 1:
            return [await self._one(batcher, images[0], deadline)]
        return list(await asyncio.gather(*(self._one(batcher, i, deadline) for i in images)))

    async def _one(self, batcher: Batcher, image: Image, deadline: float) -> Answer | ServeError:
        if isinstance(image, bytes) and len(image) > self.limits.image_bytes:
            limit = self.limits.image_bytes
            return ServeError(
                "too_large", f"an image of {len(image):,} bytes; the limit is {limit:,}"
            )
        try:
            return await batcher.answer(image, deadline)
        except ServeError as error:
            if error.http_status >= 500:
                raise
            return error

    def _count(
        self,
        model: Model,
        source: Source,
        batcher: Batcher,
        answers: Sequence[Answer | ServeError],
    ) -> None:
        for answer in answers:
            if isinstance(answer, Answer):
                self.monitor.answer(
                    model.name, source.version, answer.prediction, batcher.engine.deciles
                )

    def _follow(
        self,
        model: Model,
        shadow: Source,
        images: Sequence[Image],
        answers: Sequence[Answer | ServeError],
    ) -> None:
        """Ask the shadow too, once nobody waits for it, unless there is much to do."""
        if self.waiting > self.limits.waiting // 4:
            return
        task = asyncio.create_task(self._compare(model, shadow, images, answers))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(
        self,
        model: Model,
        shadow: Source,
        images: Sequence[Image],
        answers: Sequence[Answer | ServeError],
    ) -> None:
        usable = [
            (image, answer)
            for image, answer in zip(images, answers, strict=True)
            if isinstance(answer, Answer)
        ]
        try:
            async with self.models.lease(shadow, self.deadline(None)) as batcher:
                for image, answer in usable:
                    other = await batcher.answer(image, self.deadline(None))
                    agrees = other.prediction.class_name == answer.prediction.class_name
                    self.monitor.shadow(model.name, shadow.version, agrees)
        except Exception as error:  # noqa: BLE001 - of a trial nobody waits for; it is told
            event("shadow failed", model=model.name, version=shadow.version, error=repr(error))

    async def _explanations(
        self,
        source: Source,
        images: Sequence[Image],
        answers: Sequence[Answer | ServeError],
        deadline: float,
    ) -> list[bytes | None]:
        pictures: list[bytes | None] = []
        for image, answer in zip(images, answers, strict=True):
            if isinstance(answer, Answer) and isinstance(image, bytes):
                chosen = answer.prediction.class_name
                pictures.append(await self._explanation(source, chosen, image, deadline))
            else:
                pictures.append(None)
        return pictures

    async def _explanation(
        self, source: Source, class_name: str, image: bytes, deadline: float
    ) -> bytes:
        from btray.serve.explaining import overlay

        if self._explaining >= _EXPLANATIONS:
            raise ServeError("overloaded", "too many explanations wait; come again", 1)
        self._explaining += 1
        # What waits in the pool ends with its request; what is computed already goes on.
        job = self._explainer.submit(overlay, source.uri, source.version, class_name, image)
        job.add_done_callback(self._explained)
        try:
            left = max(0.0, deadline - time.monotonic())
            return await asyncio.wait_for(asyncio.wrap_future(job), left)
        except TimeoutError:
            raise ServeError("deadline_exceeded", "no time left for an explanation") from None
        except UserError as error:
            event("no explanation", version=source.version, error=str(error))
            raise ServeError("not_offered", "this model's answers cannot be explained") from None

    def _explained(self, _: object) -> None:
        self._explaining -= 1


def _usable(index: int, answer: Answer | ServeError) -> Answer:
    if isinstance(answer, ServeError):
        raise ServeError(answer.kind, f"image {index}: {answer}", code=answer.code)
    return answer


def refusal(refused: Refused) -> ServeError:
    """Return a refusal at the door as an error of the service."""
    return ServeError(_REFUSALS[refused.status], str(refused), refused.retry_after_s)
