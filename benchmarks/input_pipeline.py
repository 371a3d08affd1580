"""Images a second that reach a training step: btray against a DataLoader and the bare limit.

Usage: python benchmarks/input_pipeline.py [--data FOLDER] [--copies 4] [--rounds 3]

Real slices, 224 px, batches of 32 in each of two processes of one thread, nothing trained:
  limit       libjpeg-turbo (simplejpeg) on bytes in memory, Pillow's resize, btray's own batch
              augmentation and normalisation; no framework, decoding in every epoch
  dataloader  torch DataLoader, two workers, Pillow and torchvision v2 transforms, image by image,
              with the same random changes; bytes in memory, decoding in every epoch
  btray       from the Parquet data set: Ray Data decodes, two actors gather, augment, normalise;
              `first` is the first epoch with all decoding, `later` one from the cache, `btray` a
              run of as many epochs as configs/quick.yaml, the shortest configuration there is;
              `streamed` the same with the rows in a file of the node

Left out everywhere: starting processes and the first batch. The data set is imported once and its
Parquet files are copied under other names, so that every image is decoded COPIES times. The limit
is measured before and after each part of btray, because the speed of a shared machine changes
within a minute, and a part is compared with the mean of these two. Figures and ratios are medians
of the rounds: `btray_vs_…` are of the run of those epochs, `first_vs_…` and `later_vs_…` of these
alone.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import ray
import torch
from measuring import replicate
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from btray.cluster import connect
from btray.config import AugmentConfig, load_config, resolve_config
from btray.core.allocator import keep_freed_memory
from btray.core.augment import augment, batch_generator
from btray.core.tensors import normalise, to_unit
from btray.data.cache import CachedRows, NodeCaches
from btray.data.dataset import Dataset
from btray.data.decoding import Blocks, decode_rows
from btray.data.stream import Rows, Shard

SIZE, BATCH, PROCESSES = 224, 32, 2
EPOCHS = load_config(Path(__file__).parents[1] / "configs" / "quick.yaml").train.epochs
SPLITS = ("train",)
CONFIG = resolve_config({"image": {"size": SIZE}, "data": {"cache_limit": 0}})


def main() -> None:
    """Measure, print the table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=slices())
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        dataset = replicated(options.data, Path(temporary), options.copies)
        rounds = [measure(dataset) for _ in range(options.rounds)]
    figures = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    figures |= {"images": dataset.count("train"), "copies": options.copies, "epochs": EPOCHS}
    figures |= {"cores": len(os.sched_getaffinity(0)), "rounds": options.rounds}
    for key, value in figures.items():
        print(f"{key:32}{value:12,.2f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def slices() -> Path:
    """Return where the real slices are, unless told otherwise."""
    default = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("BTRAY_DATA") or default) / "brain-tumor-mri" / "Training"


def replicated(folder: Path, work: Path, copies: int) -> Dataset:
    """Import the slices and repeat the rows of the data set."""
    path = work / "dataset"
    importing = ["data", "import", str(folder), str(path), "--validation", "0.05", "--test", "0.05"]
    command = [sys.executable, "-m", "btray", *importing]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return replicate(path, copies)


def measure(dataset: Dataset) -> dict[str, float]:
    """Return all rates of one round, in images a second, and their ratios."""
    data = dataset.table(["image"], "train")["image"][:6000].to_pylist()
    figures = {"dataloader": dataloader(data[:3000])}
    figures |= through_btray(dataset, lambda: limit(data))
    for name in ("btray", "first", "later", "streamed", "streamed_first", "streamed_later"):
        figures[f"{name}_vs_dataloader"] = figures[name] / figures["dataloader"]
    print(f"# {json.dumps(figures)}", file=sys.stderr)
    return figures


def limit(data: list[bytes]) -> float:
    """Return the rate of two processes without a framework."""
    context = get_context("forkserver")
    barrier = context.Barrier(PROCESSES + 1)
    shares = [data[rank::PROCESSES] for rank in range(PROCESSES)]
    processes = [context.Process(target=bare, args=(barrier, share)) for share in shares]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return len(data) / (time.perf_counter() - started)


def bare(barrier: Barrier, data: list[bytes]) -> None:
    """Decode, resize, augment and normalise every image once."""
    one_thread()
    batches = [data[start : start + BATCH] for start in range(0, len(data), BATCH)]
    bare_batch(batches[0], 0)
    barrier.wait()
    for step, batch in enumerate(batches):
        bare_batch(batch, step)


def bare_batch(batch: list[bytes], step: int) -> torch.Tensor:
    """Make one batch of input."""
    import simplejpeg

    squares = np.empty((len(batch), SIZE, SIZE), dtype=np.uint8)
    for square, data in zip(squares, batch, strict=True):
        pixels = simplejpeg.decode_jpeg(data, "GRAY", min_height=SIZE, min_width=SIZE)[..., 0]
        if pixels.shape == square.shape:
            square[:] = pixels
        else:
            image = Image.fromarray(pixels)
            square[:] = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    images = to_unit(torch.from_numpy(squares))
    images = augment(images, AugmentConfig(), batch_generator(0, 0, 0, step))
    return normalise(images, CONFIG.image)


class Slices(TorchDataset[torch.Tensor]):
    """What one would write for a DataLoader."""

    def __init__(self, data: list[bytes]) -> None:
        from torchvision.transforms import v2

        limits = AugmentConfig()
        self.data = data
        self.transform = v2.Compose(
            [
                v2.Grayscale(),
                v2.Resize((SIZE, SIZE)),
                v2.RandomHorizontalFlip(limits.flip),
                v2.RandomAffine(
                    limits.rotation,
                    translate=(limits.translation, limits.translation),
                    scale=(1 - limits.scale, 1 + limits.scale),
                    shear=limits.shear,
                    interpolation=v2.InterpolationMode.BILINEAR,
                ),
                v2.ColorJitter(brightness=limits.brightness, contrast=limits.contrast),
                v2.Lambda(gamma),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.GaussianNoise(sigma=limits.noise / 2),
                v2.Normalize([CONFIG.image.mean], [CONFIG.image.std]),
            ]
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        image: torch.Tensor = self.transform(Image.open(io.BytesIO(self.data[index])))
        return image


def gamma(image: Image.Image) -> Image.Image:
    """Change the exponent at random: torchvision has no transform that does."""
    from torchvision.transforms.v2 import functional

    limit = AugmentConfig().gamma
    exponent = 1 + limit * (2 * float(torch.rand(())) - 1)
    changed: Image.Image = functional.adjust_gamma(image, exponent)
    return changed


def dataloader(data: list[bytes]) -> float:
    """Return the rate of a DataLoader with two workers from its second batch on."""
    loader = DataLoader(
        Slices(data),
        BATCH,
        shuffle=True,
        num_workers=PROCESSES,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    warm_up = iter(loader)
    next(warm_up)
    for _ in warm_up:
        pass
    started = time.perf_counter()
    for _ in loader:
        pass
    return len(data) / (time.perf_counter() - started)


@ray.remote(num_cpus=0)
class Consumer:
    """One rank, which throws its batches away."""

    def __init__(self, rank: int) -> None:
        one_thread()
        self.rank = rank
        black = to_unit(torch.zeros(BATCH, SIZE, SIZE, dtype=torch.uint8))
        augment(black, CONFIG.augment, batch_generator(0, 0, 0, 0))

    def fetch(self, source: list[Blocks | CachedRows], names: tuple[str, ...]) -> None:
        """Map the decoded rows."""
        rows = Rows.fetch(source[0], names, SIZE)
        cpu = torch.device("cpu")
        self.shard = Shard(rows, CONFIG.image, CONFIG.augment, 0, self.rank, PROCESSES, cpu)

    def epoch(self, number: int) -> int:
        """Take this rank's batches of an epoch; return its images."""
        return sum(len(images) for images, _ in self.shard.training(number, BATCH * PROCESSES))


def through_btray(dataset: Dataset, bare_rate: Callable[[], float]) -> dict[str, float]:
    """Return the rates of the first epoch, later ones and a run, from memory and streamed."""
    connect()
    node = ray.get_runtime_context().get_node_id()
    decode_rows(dataset, ("validation",), CONFIG.image)  # Ray's processes have started
    caches = NodeCaches(dataset, SPLITS, CONFIG)
    memory = rates(dataset, lambda: decode_rows(dataset, SPLITS, CONFIG.image), bare_rate)
    streamed = rates(dataset, lambda: caches.serve({node})[node], bare_rate)
    caches.close()
    renamed = {f"streamed_{key}".replace("_btray", ""): one for key, one in streamed.items()}
    return renamed | memory


def rates(
    dataset: Dataset, decode: Callable[[], Blocks | CachedRows], bare_rate: Callable[[], float]
) -> dict[str, float]:
    """Return the rates of a first epoch, which begins with decoding, a later one, and a run."""
    consumers = [Consumer.remote(rank) for rank in range(PROCESSES)]
    ray.get([one.__ray_ready__.remote() for one in consumers])
    count = dataset.count("train") // (BATCH * PROCESSES) * BATCH * PROCESSES
    limits = [bare_rate()]
    started = time.perf_counter()
    source = decode()
    ray.get([one.fetch.remote([source], dataset.manifest.class_names) for one in consumers])
    assert sum(ray.get([one.epoch.remote(0) for one in consumers])) == count
    first = time.perf_counter() - started
    limits.append(bare_rate())
    started = time.perf_counter()
    for epoch in (1, 2):
        assert sum(ray.get([one.epoch.remote(epoch) for one in consumers])) == count
    later = (time.perf_counter() - started) / 2
    limits.append(bare_rate())
    bare_first, bare_later = (2 * count / (one + two) for one, two in pairwise(limits))
    run, bare_run = (
        one + (EPOCHS - 1) * two for one, two in ((first, later), (bare_first, bare_later))
    )
    return {
        "limit": statistics.mean(limits),
        "first": count / first,
        "later": count / later,
        "btray": EPOCHS * count / run,
        "first_vs_limit": bare_first / first,
        "later_vs_limit": bare_later / later,
        "btray_vs_limit": bare_run / run,
    }


def one_thread() -> None:
    """Set a process up as a training worker is."""
    keep_freed_memory()
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
