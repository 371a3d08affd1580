"""From a checkpoint to a bundle."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from safetensors.torch import load_file

from btray.config import Config
from btray.core.bundle import FORMAT_VERSION, Bundle, Card, Provenance, save_bundle
from btray.core.calibration import fit_calibration
from btray.data.dataset import Dataset
from btray.train.worker import PROGRESS, VALIDATION, WEIGHTS, Progress
from btray.version import __version__


def read_progress(checkpoint: Path) -> Progress:
    """Read what a checkpoint's run had reached."""
    return Progress(**json.loads((checkpoint / PROGRESS).read_text()))


def export_bundle(checkpoint: Path, directory: Path, config: Config, dataset: Dataset) -> Bundle:
    """Write the bundle of a checkpoint, calibrated on its validation logits."""
    metrics = read_progress(checkpoint).history[-1]
    validation = load_file(checkpoint / VALIDATION)
    card = Card(
        format_version=FORMAT_VERSION,
        name=config.model.name,
        class_names=dataset.manifest.class_names,
        model=config.model,
        image=config.image,
        metrics={key: value for key, value in metrics.items() if key.startswith("val_")},
        calibration=fit_calibration(validation["logits"].numpy(), validation["labels"].numpy()),
        provenance=Provenance(
            btray_version=__version__,
            data_hash=dataset.manifest.content_hash,
            code_version=git_commit(),
            seed=config.seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            run=config.run.name,
            epoch=int(metrics["epoch"]),
        ),
        # Places may name people, and mean nothing elsewhere.
        train_config=config.model_dump(
            mode="json", exclude={"run": True, "data": {"dataset", "cache_dir"}}
        ),
        weights_sha256="",
    )
    return save_bundle(directory, load_file(checkpoint / WEIGHTS), card)


def git_commit() -> str | None:
    """Return the commit btray runs from, or None when it is installed without one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
