import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import f1_score, roc_auc_score

from btray.core.optim import Loss
from btray.train.learner import (
    RANK,
    Progress,
    Weighted,
    _of_rank,
    set_determinism,
    validation_metrics,
)


def run_of(*scores):
    progress = Progress()
    for score in scores:
        progress.add({}, score)
    return progress


def test_progress_remembers_the_best_epoch():
    progress = run_of(0.5, 0.7, 0.6)
    assert (progress.next_epoch, progress.best_epoch, progress.best_score) == (3, 1, 0.7)


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
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    assert found["val_macro_auroc"] == pytest.approx(
        roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found["val_loss"] == pytest.approx(float(loss))


def test_a_class_without_rows_has_no_auroc():
    assert "val_macro_auroc" not in validation_metrics(torch.eye(3), torch.tensor([0, 1, 1]))


def test_a_falling_score_may_be_negative():
    assert run_of(-0.5, -0.2, -0.3).best_epoch == 1


def test_determinism_is_switched_both_ways(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for exact in (True, False):
        set_determinism(exact)
        assert torch.are_deterministic_algorithms_enabled() is exact
        assert torch.backends.cudnn.benchmark is not exact


def test_ranks_of_another_number_take_the_mean_of_what_the_old_ones_had(tmp_path):
    losses = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    for rank in range(2):
        mine = {"losses": losses[rank], "bn.num_batches_tracked": torch.tensor(7)}
        save_file(mine, tmp_path / RANK.format(rank))
    assert torch.equal(_of_rank(tmp_path, 1, 2)["losses"], losses[1])
    for rank in range(3):
        found = _of_rank(tmp_path, rank, 3)
        assert torch.equal(found["losses"], losses.mean(dim=0))
        assert found["bn.num_batches_tracked"].item() == 7


def test_uneven_shares_weigh_as_much_as_their_images():
    logits, labels = torch.randn(7, 4, generator=torch.manual_seed(0)), torch.arange(7) % 4
    whole, shares = Loss()(logits, labels), [slice(0, 2), slice(2, 4), slice(4, 7)]
    parts = [
        Weighted(Loss(), (share.stop - share.start) * 3 / 7)(logits[share], labels[share])
        for share in shares
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
