"""Training images a second: `btray train` against a plain PyTorch loop and the compute limit.

Usage: python benchmarks/train_throughput.py [--images 2048] [--rounds 2] [MODEL …]

Same model, same 160-px images, batch 32, channels last, the floating-point type btray chooses
here, all cores, one run:
  limit   the same optimiser step on tensors that lie ready, in a process as it comes, and
          (limit_kept) in one that keeps freed memory, as btray's workers do
  two     two such processes of one thread and half a batch each, which know nothing of one another
  plain   what one would write: DataLoader, per-image torchvision v2 transforms, best of
          0, 1 and 2 loader workers
  btray   `btray train`, one and two data-parallel workers, from its second epoch on

The first step is timed from the command, with a cluster to start and (`up`) with one that is up.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from btray.cluster import connect, local_cores
from btray.config import AugmentConfig, Config, ImageConfig, ModelConfig, TrainConfig
from btray.core.allocator import keep_freed_memory
from btray.core.loop import Precision, train_epoch
from btray.core.optim import create_optimizer, create_scheduler
from btray.core.zoo import create_model
from btray.data.dataset import Dataset
from btray.data.decoding import decode_rows
from btray.data.sources.phantom import phantom_patient, phantom_plan
from btray.data.stream import Rows, Shard

SIZE, BATCH, CLASSES = 160, 32, 4
HALF = str(BATCH // 2)
STEPS, WARM_UP = 40, 8
MODELS = ("mobilenetv3_small_100", "btray_cnn")
SPLITS = ("--validation", "0.1", "--test", "0.05")


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(local_cores())
    if options.only:
        print(only(*options.only))
        return
    figures: dict[str, float] = {"cores": local_cores(), "images": options.images}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_slices(work / "images", options.images)
        importing = ("data", "import", str(work / "images"), str(work / "dataset"), *SPLITS)
        btray(*importing)
        for model in options.models:
            rounds = [measure(model, work, number) for number in range(options.rounds)]
            figures |= {
                f"{model}_{key}": statistics.median(one[key] for one in rounds) for key in rounds[0]
            }
        figures |= pipeline(work / "dataset")
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        for model in options.models:
            for workers in (1, 2):
                _, seconds = train(model, work, f"{model}-up-{workers}", workers, epochs=1)
                figures[f"{model}_first_step_seconds_up_{workers}"] = seconds
    report(figures, options.models)


def measure(model: str, work: Path, number: int) -> dict[str, float]:
    """Return all figures of one model, measured after one another."""
    figures = {"limit": alone(model, "limit"), "limit_kept": alone(model, "limit", "kept")}
    with ThreadPoolExecutor() as pool:
        figures["two"] = sum(pool.map(lambda _: alone(model, "limit", "kept", HALF), range(2)))
    loaders = {n: alone(model, "plain", str(work / "images"), str(n)) for n in (0, 1, 2)}
    figures |= {f"plain_{count}_loaders": rate for count, rate in loaders.items()}
    figures["plain"] = max(loaders.values())
    for workers in (1, 2):
        run = f"{model}-{workers}-{number}"
        rate, first_step = train(model, work, run, workers)
        figures[f"btray_{workers}"] = rate
        figures[f"first_step_seconds_{workers}"] = first_step
    figures["btray"] = max(figures["btray_1"], figures["btray_2"])
    figures["btray_vs_plain"] = figures["btray"] / figures["plain"]
    figures["btray_vs_limit"] = figures["btray"] / figures["limit"]
    figures["btray_2_vs_two"] = figures["btray_2"] / figures["two"]
    figures["btray_vs_limit_kept"] = figures["btray"] / figures["limit_kept"]
    print(f"# {model}: {json.dumps(figures)}", file=sys.stderr)
    return figures


def alone(model: str, what: str, *arguments: str) -> float:
    """Measure one rate in a process of its own."""
    command = [sys.executable, __file__, model, "--only", model, what, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def only(model: str, what: str, *arguments: str) -> float:
    """Return the one rate a process was started for."""
    if what == "plain":
        folder, loaders = arguments
        return plain(model, Path(folder), int(loaders))
    kept, *numbers = arguments or ("",)
    if kept:
        keep_freed_memory()
    if numbers:  # of images, and of pixels
        torch.set_num_threads(1)
    return limit(model, *map(int, numbers))


def write_slices(folder: Path, images: int) -> None:
    """Write phantom slices as JPEG files of 224 x 224 pixels, a folder a class."""
    for patient, slices in phantom_plan(images):
        for number, one in enumerate(phantom_patient(patient, 0, slices)):
            target = folder / one.label
            target.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(one.image).resize((224, 224))
            picture.save(target / f"{patient:05d}-{number}.jpg", quality=90)


def limit(name: str, batch_size: int = BATCH, size: int = SIZE) -> float:
    """Return images a second of btray's own step on a batch of tensors that lie ready."""
    model = create_model(ModelConfig(name=name), CLASSES, size)
    config = TrainConfig(warmup_epochs=0)
    optimizer = create_optimizer(model, config)
    batch = (torch.randn(batch_size, 1, size, size), torch.randint(CLASSES, (batch_size,)))
    clock = Clock(batch_size)

    def ready() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(WARM_UP + STEPS):
            yield batch

    train_epoch(
        model,
        ready(),
        nn.CrossEntropyLoss(),
        optimizer,
        create_scheduler(optimizer, config, STEPS),
        config,
        Precision.choose("auto", torch.device("cpu"), model),
        clock.tick,
    )
    return clock.rate()


def plain(name: str, folder: Path, loaders: int) -> float:
    """Return images a second of a hand-written PyTorch loop."""
    augment = AugmentConfig()
    transform = v2.Compose(
        [
            v2.Grayscale(),
            v2.Resize((SIZE, SIZE)),
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(
                augment.rotation,
                translate=(augment.translation, augment.translation),
                scale=(1 - augment.scale, 1 + augment.scale),
                shear=augment.shear,
            ),
            v2.ColorJitter(brightness=augment.brightness, contrast=augment.contrast),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.GaussianNoise(sigma=augment.noise / 2),
            v2.Normalize([0.18], [0.18]),
        ]
    )
    dataset = ImageFolder(str(folder), transform)
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=loaders, drop_last=True)
    model = timm.create_model(name, num_classes=CLASSES, in_chans=1)
    model = model.to(memory_format=torch.channels_last)
    precision = Precision.choose("auto", torch.device("cpu"), model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    criterion = nn.CrossEntropyLoss()
    clock = Clock()
    model.train()
    for step, (images, labels) in enumerate(loader):
        optimizer.zero_grad()
        with precision.autocast():
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = criterion(logits.float(), labels)
        loss.backward()
        optimizer.step()
        clock.tick(step, loss)
        if step + 1 == WARM_UP + STEPS:
            break
    return clock.rate()


def train(model: str, work: Path, run: str, workers: int, epochs: int = 3) -> tuple[float, float]:
    """Return `btray train`'s images a second, and seconds from command to first step."""
    settings = {
        "data.dataset": work / "dataset",
        "run.storage": work / "runs",
        "run.name": run,
        "image.size": SIZE,
        "data.batch_size": BATCH,
        "model.name": model,
        "train.workers": workers,
        "train.epochs": epochs,
    }
    seconds: list[float] = []
    started = time.perf_counter()

    def on_line(line: str) -> None:
        if line.startswith("first step taken"):
            seconds.append(time.perf_counter() - started)

    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    btray("train", *options, on_line=on_line)
    history = json.loads((work / "runs" / run / "history.json").read_text())
    later = history[1:] or history
    return statistics.median(row["images_per_second"] for row in later), seconds[0]


def pipeline(path: Path) -> dict[str, float]:
    """Return images a second of decoding with Ray Data, and of the batches after it."""
    connect()
    dataset, image = Dataset.open(str(path)), ImageConfig(size=SIZE)
    decode_rows(dataset, ("train",), image)
    started = time.perf_counter()
    blocks = decode_rows(dataset, ("train",), image)
    seconds = time.perf_counter() - started
    rows = Rows.fetch(blocks, dataset.manifest.class_names, SIZE)
    config = Config()
    shard = Shard(rows, image, config.augment, 0, 0, 1, torch.device("cpu"))
    clock = Clock()
    for step, (images, _) in enumerate(shard.training(0, BATCH)):
        clock.tick(step, images)
    return {"decode": len(rows.labels) / seconds, "augmented_batches": clock.rate()}


class Clock:
    """Measures a loop's rate, the first steps left out."""

    def __init__(self, size: int = BATCH) -> None:
        self.size = size
        self.times: list[float] = []

    def tick(self, step: int, loss: Tensor) -> None:
        """Note the end of a step."""
        del step, loss
        self.times.append(time.perf_counter())

    def rate(self) -> float:
        """Return images a second after the warm-up."""
        times = self.times[WARM_UP - 1 :]
        return (len(times) - 1) * self.size / (times[-1] - times[0])


def btray(*arguments: str, on_line: Callable[[str], object] = str) -> None:
    """Run the command; fail with what it said."""
    command = [sys.executable, "-m", "btray", *arguments]
    said = []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr or ():
            on_line(line)
            said.append(line)
    if process.returncode:
        sys.exit("".join(said))


def report(figures: dict[str, float], models: list[str]) -> None:
    """Print the table, and the JSON line."""
    rows = (
        "limit",
        "limit_kept",
        "two",
        "plain",
        "btray_1",
        "btray_2",
        "btray_vs_plain",
        "btray_vs_limit",
    )
    rows += ("btray_vs_limit_kept", "btray_2_vs_two")
    rows += ("first_step_seconds_1", "first_step_seconds_2")
    rows += ("first_step_seconds_up_1", "first_step_seconds_up_2")
    print(f"{'':24}" + "".join(f"{model:>24}" for model in models))
    for row in rows:
        digits = 2 if "vs" in row else 1
        values = (figures[f"{model}_{row}"] for model in models)
        print(f"{row:24}" + "".join(f"{value:24.{digits}f}" for value in values))
    print(f"decode {figures['decode']:.0f}, augmented batches {figures['augmented_batches']:.0f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
