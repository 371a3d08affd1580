"""Whether a request came through the front door, HAProxy, rather than past it.

Ray Serve's replicas listen on ports of their own, for gRPC on all addresses, whatever `--host`
says. HAProxy puts a secret into the requests it passes on; a replica answers no others.
"""

import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from btray.errors import UserError
from btray.serve.auth import Refused

FRONT_HEADER: Final = "x-btray-front"
"""Header or metadata that HAProxy sets, in place of what a client sent."""
FRONT_VARIABLE: Final = "BTRAY_FRONT_SECRET_FILE"
"""Environment variable that names the file with the secret; unset, there is no such door."""


@dataclass(frozen=True)
class Front:
    """The front door's secret; None where requests come directly."""

    secret: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> Self:
        """Read the secret; raises UserError where one is named that cannot be read."""
        path = os.environ.get(FRONT_VARIABLE)
        if not path:
            return cls()
        try:
            secret = Path(path).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise UserError(f"{path}: cannot read the secret of the front door") from None
        if not secret:
            raise UserError(f"{path}: the secret of the front door is empty")
        return cls(secret)

    def check(self, header: str | None) -> None:
        """Raise Refused (`forbidden`) for a request that came past the door."""
        if self.secret is None:
            return
        given = (header or "").encode(errors="replace")
        if not hmac.compare_digest(given, self.secret.encode()):
            raise Refused("forbidden", "this port is the server's own; ask at its front door")
