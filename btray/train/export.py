"""From a checkpoint to a bundle."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from btray.config import Config
from btray.core.bundle import Bundle, save_bundle
from btray.core.card import FORMAT_VERSION, Card, Provenance
from btray.core.files import split
from btray.core.fitting import HeldOut, fit, group_numbers
from btray.core.weights import HUB, PACKAGE
from btray.data.dataset import Dataset
from btray.data.seen import seen_in
from btray.train.learner import FEATURE_ROWS, PROGRESS, VALIDATION, WEIGHTS, Progress
from btray.version import __version__


def read_progress(checkpoint: Path) -> Progress:
    """Read what a checkpoint's run had reached."""
    return Progress(**json.loads((checkpoint / PROGRESS).read_text()))


def export_bundle(
    checkpoint: Path,
    directory: Path,
    config: Config,
    dataset: Dataset,
    teacher: str | None = None,
    refit: bool = False,
) -> Bundle:
    """Write the bundle of a checkpoint, calibrated on the validation logits beside it.

    Those of a `refit` are another network's: its own had seen validation.
    """
    metrics = read_progress(checkpoint).history[-1]
    class_names = dataset.manifest.class_names
    calibration, detector = fit(_held_out(checkpoint, dataset), class_names)
    card = Card(
        format_version=FORMAT_VERSION,
        name=config.model.name,
        class_names=class_names,
        model=config.model.model_copy(update={"pretrained": None}),
        image=config.image,
        metrics={key: value for key, value in metrics.items() if key.startswith("val_")},
        calibration=calibration,
        provenance=Provenance(
            btray_version=__version__,
            data_hash=dataset.manifest.content_hash,
            assignment_hash=dataset.manifest.split.assignment_hash,
            code_version=git_commit(),
            seed=config.seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run=_run_name(config),
            epoch=int(metrics["epoch"]),
            initial_weights=_origin(config.model.pretrained),
            teacher=teacher,
            refit=refit,
        ),
        # Places may name people, and mean nothing elsewhere.
        train_config=config.model_dump(
            mode="json",
            exclude={
                "run": True,
                "tracking": True,
                "data": {"dataset", "cache_dir"},
                "model": {"pretrained"},
                "train": {"teacher"},
            },
        ),
        weights_sha256="",
    )
    weights = load_file(checkpoint / WEIGHTS)
    return save_bundle(directory, weights, card, detector, seen_in(dataset))


def _held_out(checkpoint: Path, dataset: Dataset) -> HeldOut:
    saved = {name: value.numpy() for name, value in load_file(checkpoint / VALIDATION).items()}
    rows = dataset.table(["label", "group_id"], "validation").to_pydict()
    names, labels, features = dataset.manifest.class_names, saved["labels"], saved.get("features")
    if [names[number] for number in labels] != rows["label"]:
        raise RuntimeError(f"{checkpoint}: its validation rows are not those of {dataset.uri}")
    return HeldOut(
        labels=labels,
        logits=saved["logits"],
        groups=group_numbers(rows["group_id"]),
        features=None if features is None else features.astype(np.float32),
        stride=1 if features is None else -(-len(labels) // FEATURE_ROWS),
    )


def _run_name(config: Config) -> str | None:
    """Name the run; of a fold, with the cross-validation it belongs to."""
    if config.data.fold is None or config.run.name is None:
        return config.run.name
    return f"{split(config.run.storage)[1]}/{config.run.name}"


def _origin(pretrained: str | None) -> str | None:
    """Name where weights came from, without a path."""
    if pretrained is None or pretrained == HUB or pretrained.startswith(PACKAGE):
        return pretrained
    return "file"


def git_commit() -> str | None:
    """Return the commit btray runs from, or None when it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
