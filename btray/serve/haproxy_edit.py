"""Edits the configuration Ray Serve writes for HAProxy, then becomes HAProxy.

Run by file name, without btray or any package, in Ray's place for the binary:
`python -IS haproxy_edit.py EDITS.json -db -f haproxy.cfg …`. What cannot be edited as wanted is
not started: a template that has changed must not open a port.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

MARK: Final = "# edited by btray"
"""First line of what has been edited."""


class Edit(NamedTuple):
    """A change of every line of a section that matches."""

    section: str
    """The section's first line, such as `frontend prometheus`."""
    pattern: str
    """Regular expression for the whole line, less the space around it."""
    lines: list[str]
    """Lines in its place, with `\\1` for the pattern's groups."""
    optional: bool = False
    """Whether the section may be missing."""


def edit(text: str, edits: Sequence[Edit]) -> str:
    """Return an edited configuration; one that has been edited stays as it is.

    Raises:
        ValueError: an edit found nothing to change.

    """
    if text.startswith(MARK):
        return text
    lines, section, sections, done = [MARK], "", set(), set()
    for line in text.splitlines():
        if line[:1].isalpha():
            section = line.strip()
            sections.add(section)
        matches = [
            (e, re.fullmatch(e.pattern, line.strip())) for e in edits if e.section == section
        ]
        found = next(((e, match) for e, match in matches if match), None)
        if found is None:
            lines.append(line)
            continue
        done.add(found[0][:2])
        lines += ["    " + found[1].expand(new) for new in found[0].lines]
    for wanted in edits:
        needed = wanted.section in sections or not wanted.optional
        if needed and wanted[:2] not in done:
            raise ValueError(f"no line {wanted.pattern!r} in the section {wanted.section!r}")
    return "\n".join(lines) + "\n"


def edit_file(path: Path, edits: Sequence[Edit]) -> None:
    """Edit a file, all at once; raises OSError and ValueError."""
    edited = path.with_name(f"{path.name}.{os.getpid()}.new")
    edited.write_text(edit(path.read_text(encoding="utf-8"), edits), encoding="utf-8")
    edited.chmod(0o600)
    edited.replace(path)


def main(arguments: Sequence[str]) -> None:
    """Edit the file after `-f` and become HAProxy with the same arguments."""
    settings, *rest = arguments
    try:
        told = json.loads(Path(settings).read_text(encoding="utf-8"))
        if "-f" in rest:
            edits = [Edit(**one) for one in told["edits"]]
            edit_file(Path(rest[rest.index("-f") + 1]), edits)
        os.execv(told["binary"], [told["binary"], *rest])  # noqa: S606 - no shell is the point
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"btray: HAProxy is not started: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
