"""Why a request of the protocol is refused."""

from typing import Literal

Status = Literal["invalid", "not_found", "too_large"]


class ProtocolError(Exception):
    """A request that is not as the protocol has it, in words for who sent it.

    `status` is `invalid` (HTTP 400, INVALID_ARGUMENT), `not_found` (404, NOT_FOUND) or
    `too_large` (413, INVALID_ARGUMENT).
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(status, message)  # all of it, or else it does not come out of a pickle
        self.status, self.message = status, message

    def __str__(self) -> str:
        return self.message


def invalid(message: str) -> ProtocolError:
    """Return the error of a request that makes no sense."""
    return ProtocolError("invalid", message)


def shown(text: str) -> str:
    """Return text from a request as an error may repeat it: quoted, and not too long."""
    return repr(text if len(text) <= 64 else f"{text[:64]}…")
