"""A sweep's folder: what it is, and whether it is finished."""

from datetime import UTC, datetime
from typing import Final

from btray.config import dump_config, parse_yaml, resolve_as
from btray.core import files
from btray.errors import UserError
from btray.train.storage import CONFIG, RunFolder
from btray.tune.settings import SweepConfig

SETTINGS: Final = "sweep.yaml"
OUTCOME: Final = "sweep.json"
DATA: Final = "data.sha256"


def reserve(config: SweepConfig) -> RunFolder:
    """Name the folder of a new sweep without touching it; raises UserError if it is in use."""
    name = config.run.name or f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder = RunFolder.locate(files.join(files.absolute(config.run.storage), name))
    if folder.exists(SETTINGS) or folder.exists(CONFIG):
        raise UserError(
            f"{folder.uri}: a sweep or run of this name is there already; choose another "
            f"run.name, or continue it with `btray tune --resume {folder.uri}`"
        )
    return folder


def create(config: SweepConfig, folder: RunFolder, order_hash: str) -> None:
    """Make the folder of a new sweep; raises UserError if the storage cannot be written."""
    folder.write(DATA, order_hash.encode())
    folder.write(SETTINGS, dump_config(config).encode())


def reopen(uri: str) -> tuple[RunFolder, SweepConfig]:
    """Open a sweep that ended early, wherever it is now; raises UserError if there is none."""
    folder = RunFolder.locate(uri)
    text = folder.read(SETTINGS).decode()
    if not text:
        raise UserError(f"{uri}: no sweep to resume (no {SETTINGS}); give the folder of a sweep")
    if folder.exists(OUTCOME):
        raise UserError(f"{uri}: this sweep is finished; see {files.join(uri, 'sweep.html')}")
    config = resolve_as(SweepConfig, parse_yaml(text, files.join(uri, SETTINGS)))
    return folder, settled(config, folder)


def settled(config: SweepConfig, folder: RunFolder) -> SweepConfig:
    """Return the configuration with its places independent of the current folder."""
    warm = [files.absolute(uri) for uri in config.tune.warm_start]
    searched = config.tune.model_copy(update={"warm_start": warm})
    own = folder.settle(config.base())
    return SweepConfig.model_validate({**own.model_dump(), "tune": searched.model_dump()})
