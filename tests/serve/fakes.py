"""An engine that answers by what the image says, and can be slow or broken."""

import threading
import time

import numpy as np

from btray.core.answers import Outputs, Prediction
from btray.core.images import ImageError

NAMES = ("glioma", "meningioma", "notumor", "pituitary")


class FakeEngine:
    """Its class is the first pixel's value; an image is that byte, repeated."""

    runtime, deciles = "fake", tuple(float(n) for n in range(1, 10))

    def __init__(self, best_batch=4, seconds=0.0, version="0" * 12):
        self.best_batch, self.seconds, self.version = best_batch, seconds, version
        self.batches, self.threads = [], set()
        self.go = threading.Event()
        self.go.set()

    def prepare(self, data):
        self.threads.add(threading.current_thread().name)
        if not data:
            raise ImageError("empty", "the file is empty")
        if data[:1] == b"\xff":
            raise ImageError("unreadable", "truncated or damaged")
        return np.full((8, 8), data[0], dtype=np.uint8)

    def outputs(self, squares):
        self.go.wait(10)
        time.sleep(self.seconds)
        self.batches.append(len(squares))
        if (squares == 200).any():
            raise RuntimeError("the network's answer is not a number")
        classes = squares[:, 0, 0].astype(int) % 4
        return Outputs(np.eye(4, dtype=np.float32)[classes], None, squares[:, 0, 0].astype(float))

    def predictions(self, outputs):
        return [
            Prediction(
                NAMES[int(row.argmax())],
                dict(zip(NAMES, row.tolist(), strict=True)),
                (NAMES[int(row.argmax())],),
                abstain=False,
                out_of_distribution=bool(score > 100),
                ood_score=float(score),
            )
            for row, score in zip(outputs.logits, outputs.strangeness, strict=True)
        ]
