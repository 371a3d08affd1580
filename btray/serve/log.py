"""One logger: its lines carry ids, codes and times, never an image or a name."""

import logging
import re
from typing import Final

LOGGER: Final = logging.getLogger("ray.serve")
"""Ray Serve's own, which writes JSON when its configuration says so."""
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What a client may call its request: nothing that could forge a line."""


def event(message: str, level: int = logging.INFO, **fields: object) -> None:
    """Write one line; `fields` become fields of its JSON."""
    LOGGER.log(level, message, extra={f"btray_{name}": value for name, value in fields.items()})
