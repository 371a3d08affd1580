import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from btray.train.worker import Progress, validation_metrics


def run_of(*scores):
    progress = Progress()
    for score in scores:
        progress.add({"val_macro_f1": score})
    return progress


def test_progress_remembers_the_best_epoch():
    progress = run_of(0.5, 0.7, 0.6)
    assert (progress.next_epoch, progress.best_epoch, progress.best_macro_f1) == (3, 1, 0.7)


@pytest.mark.parametrize(
    ("scores", "patience", "exhausted"),
    [
        ((), 1, False),
        ((0.5,), 1, False),
        ((0.5, 0.5), 1, True),
        ((0.5, 0.4, 0.6), 2, False),
        ((0.6, 0.4, 0.5), 2, True),
        ((0.6, 0.4, 0.5), 0, False),
    ],
)
def test_patience(scores, patience, exhausted):
    assert run_of(*scores).exhausted(patience) is exhausted


def test_validation_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    found = validation_metrics(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found["val_accuracy"] == (logits.argmax(1) == labels).mean()
    assert found["val_macro_f1"] == pytest.approx(
        f1_score(labels, logits.argmax(1), average="macro"), abs=1e-12
    )
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found["val_loss"] == pytest.approx(float(loss))
