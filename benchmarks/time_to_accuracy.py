"""Seconds until the validation accuracy is reached: btray, a plain loop, PyTorch Lightning.

Usage: python benchmarks/time_to_accuracy.py [--data FOLDER] [--accuracy 0.95] [--only NAME …]

The same network (btray_cnn), 160-px images, batches of 32, AdamW with warm-up and cosine, random
changes of the same ranges, floating-point type, validation after every epoch, all cores, from the
same start of the clock (the command) to the end of the first epoch that reaches the accuracy:
  btray      `btray train`, two workers, from its data set
  plain      a hand-written loop with a DataLoader of two workers and torchvision v2, channels last
  lightning  the same module and loaders under lightning.Trainer

The slices are the real ones where BTRAY_DATA or ../shared/data has them, else phantom ones. They
are imported by btray first (told as `import_seconds`, not counted: its split is written out as
files for the others, so that all see the same pictures).
"""

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from measuring import Watched, btray
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

SIZE, BATCH, EPOCHS, RATE, WARM_UP = 160, 32, 30, 2e-3, 0.5
NAMES = ("btray", "plain", "lightning")


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--accuracy", type=float, default=0.95)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        name, folder, accuracy = options.peer
        peer(name, Path(folder), float(accuracy))
        return
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(Path(temporary), options)
    for key, value in figures.items():
        print(f"{key:32}{value:12,.3f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def measure(work: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return all figures."""
    source = options.data or slices()
    if source is None:
        imported = btray("data", "phantom", work / "dataset", "--images", options.images)
    else:
        imported = btray("data", "import", source, work / "dataset")
    write_files(work)
    figures = {"import_seconds": imported.seconds, "real_slices": float(source is not None)}
    figures |= {"accuracy": options.accuracy, "cores": float(len(os.sched_getaffinity(0)))}
    for name in options.only:
        seconds, epochs = run(name, work, options.accuracy)
        figures |= {f"{name}_seconds": seconds, f"{name}_epochs": epochs}
        print(f"# {name}: {seconds:.1f} s, {epochs:.0f} epochs", file=sys.stderr)
    peers = [figures[f"{name}_seconds"] for name in options.only if name != "btray"]
    if "btray" in options.only and peers:
        figures["btray_vs_best_peer"] = figures["btray_seconds"] / min(peers)
    return figures


def slices() -> Path | None:
    """Return where the real slices are, if they are."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BTRAY_DATA") or default) / "brain-tumor-mri"
    return folder if folder.is_dir() else None


def write_files(work: Path) -> None:
    """Write the training and validation images as files, a folder a class."""
    from btray.data.dataset import Dataset

    dataset = Dataset.open(str(work / "dataset"))
    for split in ("train", "validation"):
        table = dataset.table(["image", "label", "sha256"], split)
        for row in table.to_pylist():
            target = work / split / row["label"]
            target.mkdir(parents=True, exist_ok=True)
            kind = (Image.open(io.BytesIO(row["image"])).format or "").lower()
            (target / f"{row['sha256']}.{kind}").write_bytes(row["image"])


def run(name: str, work: Path, accuracy: float) -> tuple[float, float]:
    """Return the seconds from the command to the accuracy, and the epochs it took."""
    if name != "btray":
        command = [sys.executable, __file__, "--peer", name, str(work), str(accuracy)]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                epoch, reached = json.loads(line)
                if reached >= accuracy:
                    seconds = time.perf_counter() - started
                    process.wait()
                    return seconds, epoch + 1
        raise SystemExit(f"{name} did not reach {accuracy}")

    def reached(done: Watched) -> bool:
        return when(done, accuracy) is not None

    settings = {
        "data.dataset": work / "dataset",
        "data.batch_size": BATCH,
        "run.storage": work / "runs",
        "run.name": "btray",
        "image.size": SIZE,
        "train.workers": 2,
        "train.epochs": EPOCHS,
        "train.learning_rate": RATE,
        "train.warmup_epochs": WARM_UP,
        "train.patience": 0,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = btray("train", *options, until=reached)
    found = when(done, accuracy)
    if found is None:
        raise SystemExit(f"btray did not reach {accuracy}")
    return found


def when(done: Watched, accuracy: float) -> tuple[float, float] | None:
    """Return when btray said that it reached the accuracy, and after how many epochs."""
    epochs = [(seconds, line) for seconds, line in done.lines if line.startswith("epoch ")]
    for seconds, line in epochs:
        if float(line.split("accuracy", 1)[1].split()[0]) >= accuracy:
            return seconds, float(line.split()[1].split("/")[0])
    return None


def peer(name: str, work: Path, accuracy: float) -> None:
    """Train until the accuracy is reached, printing a JSON list [epoch, accuracy] an epoch."""
    torch.manual_seed(0)
    train, validation = loaders(work)
    (plain if name == "plain" else lightning)(train, validation, accuracy)


def loaders(work: Path) -> tuple[DataLoader, DataLoader]:
    """Return what one would write."""
    from btray.config import AugmentConfig

    limits = AugmentConfig()
    resize = [v2.Grayscale(), v2.Resize((SIZE, SIZE))]
    to_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    scale = v2.Normalize([0.18], [0.18])
    change = [
        v2.RandomHorizontalFlip(limits.flip),
        v2.RandomAffine(
            limits.rotation,
            translate=(limits.translation, limits.translation),
            scale=(1 - limits.scale, 1 + limits.scale),
            shear=limits.shear,
            interpolation=v2.InterpolationMode.BILINEAR,
        ),
        v2.ColorJitter(brightness=limits.brightness, contrast=limits.contrast),
    ]
    noise = v2.GaussianNoise(sigma=limits.noise / 2)
    train = ImageFolder(work / "train", v2.Compose([*resize, *change, *to_input, noise, scale]))
    validation = ImageFolder(work / "validation", v2.Compose([*resize, *to_input, scale]))
    options = {"num_workers": 2, "persistent_workers": True}
    return (
        DataLoader(train, BATCH, shuffle=True, drop_last=True, **options),
        DataLoader(validation, 128, **options),
    )


def network() -> nn.Module:
    """Return btray's compact network."""
    from btray.config import ModelConfig
    from btray.core.zoo import create_model

    return create_model(ModelConfig(name="btray_cnn"), 4)


def optimiser(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return AdamW and warm-up, then half a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02, fused=True)
    warm_up, total = WARM_UP * steps, EPOCHS * steps

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up)))

    return optimizer, LambdaLR(optimizer, factor)


def dtype() -> torch.dtype:
    """Return the type btray chooses here: a peer is not to lose by a worse one."""
    from btray.core.loop import Precision

    return Precision.choose("auto", torch.device("cpu"), network()).dtype


def plain(train: DataLoader, validation: DataLoader, accuracy: float) -> None:
    """Train as one would without a framework."""
    model, kind = network(), dtype()
    optimizer, scheduler = optimiser(model, len(train))
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            with torch.autocast("cpu", kind, enabled=kind != torch.float32):
                logits = model(images.contiguous(memory_format=torch.channels_last))
            nn.functional.cross_entropy(logits.float(), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == y).sum()) for images, y in validation)
        reached = right / len(validation.dataset)  # type: ignore[arg-type]
        print(json.dumps([epoch, reached]), flush=True)
        if reached >= accuracy:
            return


def lightning(train: DataLoader, validation: DataLoader, accuracy: float) -> None:
    """Train the same under PyTorch Lightning."""
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.right = network(), 0

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
            return nn.functional.cross_entropy(logits.float(), labels)

        def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
            images, labels = batch
            self.right += int((self.model(images).argmax(1) == labels).sum())

        def on_validation_epoch_end(self) -> None:
            reached = self.right / len(validation.dataset)  # type: ignore[arg-type]
            self.right = 0
            print(json.dumps([self.current_epoch, reached]), flush=True)
            self.trainer.should_stop = reached >= accuracy

        def configure_optimizers(self) -> dict[str, object]:
            optimizer, scheduler = optimiser(self.model, len(train))
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            }

    warnings.filterwarnings("ignore")
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        precision="bf16-mixed" if dtype() == torch.bfloat16 else "32-true",
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(), train, validation)


if __name__ == "__main__":
    main()
