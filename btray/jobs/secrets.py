"""Secrets by reference: what travels says where a value stands on the cluster, never the value.

A job's environment is kept by the cluster and shown by its dashboard. So a secret is named there
only; every process of the job reads it where it runs.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from btray.errors import UserError

VARIABLE: Final = "BTRAY_SECRETS"
"""Environment variable that carries the references, as JSON: name → reference."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|COOKIE", re.IGNORECASE)


def parse_references(given: Iterable[str]) -> dict[str, str]:
    """Return NAME → `file:/path` or `env:OTHER` for texts `NAME=reference`.

    Raises:
        UserError: another form. The text is not repeated: it may be the secret itself.

    """
    references = {}
    for text in given:
        name, _, reference = text.partition("=")
        kind, _, place = reference.partition(":")
        valid = (kind == "file" and place.startswith("/")) or (
            kind == "env" and _NAME.fullmatch(place)
        )
        if not _NAME.fullmatch(name) or not valid:
            raise UserError(
                f"--secret {name}=…: write NAME=file:/path or NAME=env:OTHER, which are looked up "
                "on the cluster; a value itself is never sent"
            )
        references[name] = reference
    return references


def parse_variables(given: Iterable[str]) -> dict[str, str]:
    """Return NAME → value for texts `NAME=value`.

    Raises:
        UserError: another form, or a name that is a secret's.

    """
    variables = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not _NAME.fullmatch(name):
            raise UserError("--env: write it as NAME=value")
        if _SECRET.search(name):
            raise UserError(
                f"--env {name}: the cluster would show its value; put it where the nodes can read "
                f"it and name the place: --secret {name}=file:/path or {name}=env:OTHER"
            )
        variables[name] = value
    return variables


def resolve() -> None:
    """Put the secrets that this process is told of into its environment.

    Raises:
        UserError: one is not to be had here.

    """
    for name, reference in json.loads(os.environ.get(VARIABLE, "{}")).items():
        os.environ[name] = _look_up(name, reference)


def _look_up(name: str, reference: str) -> str:
    kind, _, place = reference.partition(":")
    if kind == "env":
        if place not in os.environ:
            raise UserError(f"--secret {name}={reference}: no such variable on this node")
        return os.environ[place]
    try:
        return Path(place).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise UserError(f"--secret {name}={reference}: {reason} on this node") from None
