"""The best point once more, on train and validation together."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch

from btray.config import Config
from btray.core.bundle import Bundle
from btray.core.weights import Weights
from btray.data.dataset import Dataset
from btray.data.decoding import Blocks
from btray.errors import UserError
from btray.train.export import export_bundle
from btray.train.learner import VALIDATION, Diverged, Learner, Rank
from btray.tune.room import Room


def refuse_refit(config: Config) -> None:
    """Raise UserError for settings that go by validation, of which a refit has none."""
    if config.train.schedule == "plateau" or config.train.freeze_patience:
        raise UserError(
            "tune.refit: train.schedule=plateau and train.freeze_patience go by validation, which "
            "a refit trains on; take other settings, or leave tune.refit out"
        )


def refit(
    config: Config,
    dataset: Dataset,
    blocks: Blocks,
    weights: Weights | None,
    room: Room,
    best: Path,
    directory: Path,
) -> Bundle:
    """Train on train and validation for all epochs; write the bundle of the last one.

    Nothing is left to choose an epoch by, and nothing to calibrate on: the calibration is that
    of the best checkpoint, in `best`, whose network had not seen validation. The bundle says so
    (`provenance.refit`) and has no validation scores.

    Raises:
        UserError: the loss became NaN or infinite.

    """
    resources = {"num_cpus": room.reserved, "num_gpus": room.gpus}
    names, threads = dataset.manifest.class_names, room.cpus
    trained = _train.options(**resources).remote(config, names, [blocks], weights, threads)
    found: dict[str, bytes] | str = ray.get(trained)
    if isinstance(found, str):
        raise UserError(f"tune.refit: training diverged: {found}; the search itself is kept")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, data in found.items():
            (folder / name).write_bytes(data)
        shutil.copy(best / VALIDATION, folder / VALIDATION)
        return export_bundle(folder, directory, config, dataset, refit=True)


@ray.remote(max_retries=2)
def _train(
    config: Config,
    names: tuple[str, ...],
    blocks: list[Any],
    weights: Weights | None,
    threads: int,
) -> dict[str, bytes] | str:
    """Return the files of the last epoch's checkpoint, or how it diverged."""
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    both = ("train", "validation")
    learner = Learner(config, names, threads, blocks[0], weights, None, Rank(0, 1, device), both)
    try:
        for _ in range(config.train.epochs):
            losses = learner.train(lambda _done, _loss: None)
            row = {"epoch": float(learner.progress.next_epoch), "train_loss": float(losses.mean())}
            learner.progress.add(row, score=row["epoch"])
    except Diverged as found:
        return str(found)
    with tempfile.TemporaryDirectory() as temporary:
        learner.save(Path(temporary))
        return {path.name: path.read_bytes() for path in Path(temporary).iterdir()}
