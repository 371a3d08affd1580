"""The working directory of a job: what of a folder goes along, as one small archive."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from btray.errors import UserError

LIMIT: Final = 100 * 2**20
"""Largest archive that Ray's job server takes, in bytes."""
_NEVER: Final = GitIgnoreSpec.from_lines(
    [
        ".git", ".venv", "venv", "__pycache__", "*.py[co]", "*.egg-info", ".*_cache", ".env",
        "node_modules", "/data/", "/runs/", "/demo/", "/build/", "/dist/",
    ]
)  # fmt: skip
_IGNORE_FILES: Final = (".gitignore", ".rayignore")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same files make the same archive, which is sent once
_BIGGEST: Final = 3


def files_of(folder: Path) -> list[Path]:
    """Return what goes along: all but what .gitignore and .rayignore name, and known junk."""
    return sorted(_walk(folder, Path(), ()))


def _walk(root: Path, inside: Path, above: Sequence[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    specs = [*above, *_specs(root, inside)]
    with os.scandir(root / inside) as entries:
        for entry in entries:
            path = inside / entry.name
            folder = entry.is_dir(follow_symlinks=False)
            if _left_out(path, folder, specs):
                continue
            if folder:
                yield from _walk(root, path, specs)
            elif entry.is_file():
                yield path


def _specs(root: Path, inside: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    for name in _IGNORE_FILES:
        file = root / inside / name
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield inside, GitIgnoreSpec.from_lines(lines)


def _left_out(path: Path, folder: bool, specs: Sequence[tuple[Path, GitIgnoreSpec]]) -> bool:
    suffix = "/" if folder else ""
    if _NEVER.match_file(path.as_posix() + suffix):
        return True
    return any(spec.match_file(path.relative_to(base).as_posix() + suffix) for base, spec in specs)


def pack(folder: Path, archive: Path, limit: int = LIMIT) -> None:
    """Write a folder's files to a zip archive.

    Raises:
        UserError: the folder cannot be read, or the archive is larger than the limit.

    """
    try:
        paths = files_of(folder)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in paths:
                mode = (folder / path).stat().st_mode
                member = zipfile.ZipInfo(path.as_posix(), _EPOCH)
                member.external_attr = (mode & 0xFFFF) << 16
                member.compress_type = zipfile.ZIP_DEFLATED
                zipped.writestr(member, (folder / path).read_bytes())
    except OSError as error:
        raise UserError(f"--working-dir {folder}: {error.filename}: {error.strerror}") from None
    if archive.stat().st_size > limit:
        raise UserError(_too_large(folder, archive, limit))


def _too_large(folder: Path, archive: Path, limit: int) -> str:
    with zipfile.ZipFile(archive) as zipped:
        members = sorted(zipped.infolist(), key=lambda member: -member.compress_size)
    biggest = ", ".join(
        f"{member.filename} ({_size(member.compress_size)})" for member in members[:_BIGGEST]
    )
    return (
        f"--working-dir {folder}: {_size(archive.stat().st_size)} packed, and at most "
        f"{_size(limit)} can be sent; the biggest: {biggest}; name what is not needed in "
        ".gitignore or .rayignore"
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
