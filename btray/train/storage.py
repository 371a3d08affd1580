"""A run's folder, local or in a bucket: its configuration, history, checkpoints, bundle."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pyarrow.fs

from btray.config import Config, dump_config, parse_yaml, resolve_config
from btray.core import files
from btray.core.layout import CARD, FOLDER
from btray.errors import UserError

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
    def create(cls, config: Config) -> tuple[Self, Config]:
        """Make the folder of a new run; return it and the configuration stored there.

        The stored one names the run, and all places independently of the current folder.

        Raises:
            UserError: the name is in use, or the storage cannot be written.

        """
        folder = cls.free(config)
        settled = folder._settle(config)
        folder.write(CONFIG, dump_config(settled).encode())
        return folder, settled

    @classmethod
    def free(cls, config: Config) -> Self:
        """Name the folder of a new run without touching it; raises UserError if it is in use."""
        name = config.run.name or _default_name(config)
        folder = cls.locate(files.join(files.absolute(config.run.storage), name))
        if folder._exists(CONFIG):
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
    def reopen(cls, uri: str) -> tuple[Self, Config]:
        """Open an earlier run, wherever it is now, and read back its configuration.

        Raises:
            UserError: there is no run, or it is finished.

        """
        folder = cls.locate(uri)
        try:
            text = files.read(files.join(uri, CONFIG)).decode()
        except FileNotFoundError:
            raise UserError(
                f"{uri}: no run to resume (no {CONFIG}); give the folder of a run"
            ) from None
        if folder._exists(f"{FOLDER}/{CARD}"):
            raise UserError(f"{uri}: this run is finished; its bundle is {uri}/{FOLDER}")
        config = resolve_config(parse_yaml(text, files.join(uri, CONFIG)))
        return folder, folder._settle(config)

    def _settle(self, config: Config) -> Config:
        storage, _ = files.split(self.uri)
        run = config.run.model_copy(update={"storage": storage, "name": self.name})
        dataset = config.data.dataset and files.absolute(config.data.dataset)
        cache_dir = config.data.cache_dir and files.absolute(config.data.cache_dir)
        data = config.data.model_copy(update={"dataset": dataset, "cache_dir": cache_dir})
        return config.model_copy(update={"run": run, "data": data})

    def write(self, name: str, data: bytes) -> None:
        """Write one small file.

        Raises:
            UserError: the storage cannot be written.

        """
        try:
            path = f"{self.path}/{name}"
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
        except OSError as error:
            raise UserError(f"{self.uri}: cannot be written: {files.reason(error)}") from None

    def read(self, name: str) -> bytes:
        """Read one small file; empty when there is none."""
        try:
            return files.read(files.join(self.uri, name))
        except FileNotFoundError:
            return b""

    def _exists(self, name: str) -> bool:
        return files.exists(files.join(self.uri, name))


def _default_name(config: Config) -> str:
    return f"{config.model.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
