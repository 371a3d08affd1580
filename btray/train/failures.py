"""Why a process of a run failed, in a line for a person."""

from typing import Final

_LENGTH: Final = 300
_NO_MEMORY: Final = ("running low on memory", "OutOfMemoryError", "CUDA out of memory")


def one_line(error: BaseException | None) -> str:
    """Return what a process died of, without its traceback."""
    if error is None:
        return "its process died"
    cause: BaseException = getattr(error, "cause", None) or error
    text = str(cause).strip()
    if any(sign in f"{type(cause).__name__} {text}" for sign in _NO_MEMORY):
        return "memory ran out; lower data.batch_size, image.size or train.workers"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LENGTH] if lines else type(cause).__name__
