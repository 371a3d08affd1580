"""One logger: its lines carry ids, codes and times, never an image or a name."""

import logging
from typing import Final

LOGGER: Final = logging.getLogger("ray.serve")
"""Ray Serve's own, which writes JSON when its configuration says so."""


def event(message: str, level: int = logging.INFO, **fields: object) -> None:
    """Write one line; `fields` become fields of its JSON."""
    LOGGER.log(level, message, extra={f"btray_{name}": value for name, value in fields.items()})
