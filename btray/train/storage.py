"""A run's folder, local or in a bucket: its configuration, history, checkpoints, bundle."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pyarrow.fs

from btray.config import Config, dump_config, parse_yaml, resolve_config
from btray.core import files
from btray.core.layout import CARD, FOLDER
from btray.errors import UserError
from btray.train.changes import Changes, compare

CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunFolder:
    """Where one run lives."""

    uri: str
    filesystem: pyarrow.fs.FileSystem
    parent: str
    name: str

    @property
    def path(self) -> str:
        """The folder inside the file system."""
        return f"{self.parent}/{self.name}"

    @property
    def local(self) -> Path | None:
        """The folder on this machine, or None for a bucket."""
        return Path(self.path) if "://" not in self.uri else None

    @classmethod
    def create(cls, config: Config, notes: Mapping[str, str] | None = None) -> tuple[Self, Config]:
        """Make the folder of a new run; return it and the configuration stored there.

        The stored one names the run, and all places independently of the current folder. It is
        written after the `notes`, small files by name: where it is, there is a whole run.

        Raises:
            UserError: the name is in use, or the storage cannot be written.

        """
        folder = cls.free(config)
        settled = folder.settle(config)
        for name, text in (notes or {}).items():
            folder.write(name, text.encode())
        folder.write(CONFIG, dump_config(settled).encode())
        return folder, settled

    @classmethod
    def free(cls, config: Config) -> Self:
        """Name the folder of a new run without touching it; raises UserError if it is in use."""
        name = config.run.name or _default_name(config)
        folder = cls.locate(files.join(files.absolute(config.run.storage), name))
        if folder.exists(CONFIG):
            raise UserError(
                f"{folder.uri}: a run of this name is there already; choose another run.name, or "
                f"continue it with `btray train --resume {folder.uri}`"
            )
        return folder

    @classmethod
    def locate(cls, uri: str) -> Self:
        """Name the folder of a run without touching it."""
        storage, name = files.split(uri)
        filesystem, parent = files.resolve(storage)
        return cls(files.join(storage, name), filesystem, parent, name)

    @classmethod
    def reopen(cls, uri: str, changes: "Changes | None" = None) -> tuple[Self, Config, list[str]]:
        """Open an earlier run, wherever it is now; return its configuration, and what changes.

        Raises:
            UserError: there is no run, it is finished, or a setting changes that must not.

        """
        folder = cls.locate(uri)
        try:
            text = files.read(files.join(uri, CONFIG)).decode()
        except FileNotFoundError:
            raise UserError(
                f"{uri}: no run to resume (no {CONFIG}); give the folder of a run"
            ) from None
        if folder.exists(f"{FOLDER}/{CARD}"):
            raise UserError(f"{uri}: this run is finished; its bundle is {uri}/{FOLDER}")
        tree = parse_yaml(text, files.join(uri, CONFIG))
        before = folder.settle(resolve_config(tree))
        if changes is None:
            return folder, before, []
        after = folder.settle(changes.apply(tree))
        return folder, after, compare(before, after)

    def settle(self, config: Config) -> Config:
        """Return a run's configuration with its places independent of the current folder."""
        storage, _ = files.split(self.uri)
        run = config.run.model_copy(update={"storage": storage, "name": self.name})
        dataset = config.data.dataset and files.absolute(config.data.dataset)
        cache_dir = config.data.cache_dir and files.absolute(config.data.cache_dir)
        data = config.data.model_copy(update={"dataset": dataset, "cache_dir": cache_dir})
        teacher = config.train.teacher and files.absolute(config.train.teacher)
        train = config.train.model_copy(update={"teacher": teacher})
        uri = config.tracking.uri and files.absolute(config.tracking.uri)
        tracking = config.tracking.model_copy(update={"uri": uri})
        return config.model_copy(
            update={"run": run, "data": data, "train": train, "tracking": tracking}
        )

    def write(self, name: str, data: bytes) -> None:
        """Write one small file, whole or not at all.

        Raises:
            UserError: the storage cannot be written.

        """
        path = f"{self.path}/{name}"
        # A bucket shows an object only once it is whole; a file is made whole, then renamed.
        draft = path if self.local is None else f"{path}.part"
        try:
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(draft) as stream:
                stream.write(data)
            if draft != path:
                self.filesystem.move(draft, path)
        except OSError as error:
            if draft != path:
                with suppress(OSError):  # why it could not be written matters more
                    Path(draft).unlink()
            raise UserError(f"{self.uri}: cannot be written: {files.reason(error)}") from None

    def remove(self, name: str) -> None:
        """Remove one file."""
        self.filesystem.delete_file(f"{self.path}/{name}")

    def read(self, name: str) -> bytes:
        """Read one small file; empty when there is none."""
        try:
            return files.read(files.join(self.uri, name))
        except FileNotFoundError:
            return b""

    def exists(self, name: str) -> bool:
        """Say whether there is a file of this name."""
        return files.exists(files.join(self.uri, name))


def _default_name(config: Config) -> str:
    return f"{config.model.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
