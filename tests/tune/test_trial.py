"""One trial, called as Ray Tune calls it."""

import pyarrow.fs
import pytest
from ray import tune

from btray.data.dataset import Dataset
from btray.data.decoding import decode_rows
from btray.tune.schedulers import Budget
from btray.tune.trial import BEST, EPOCHS, HISTORY, LearnerTrial

pytestmark = pytest.mark.cluster


@pytest.fixture
def make_trial(cluster, make_sweep):
    base = make_sweep().base()
    dataset = Dataset.open(base.data.dataset)
    blocks = decode_rows(dataset, ("train", "validation"), base.image, {})
    trainable = tune.with_parameters(
        LearnerTrial,
        base=base,
        class_names=dataset.manifest.class_names,
        blocks={base.image: blocks},
        timed=True,
    )
    return lambda rate=3e-3: trainable({"point": {"train.learning_rate": rate}})


def scores(result):
    return {k: v for k, v in result.items() if k.startswith("val_") or k in ("epoch", BEST)}


def trained(trial, folder, epochs=3):
    """The results of some epochs, each with a checkpoint."""
    results = []
    for epoch in range(epochs):
        results.append(trial.train())
        checkpoint = folder / f"checkpoint_{epoch:06d}"
        checkpoint.mkdir(parents=True)
        trial.save_checkpoint(str(checkpoint))
    return results


def at(path):
    return tune.Checkpoint(str(path), pyarrow.fs.LocalFileSystem())


def test_a_trial_tells_what_it_measured_and_when_it_is_done(make_trial, tmp_path):
    results = trained(make_trial(), tmp_path)
    assert [result["epoch"] for result in results] == [0, 1, 2]
    assert [result["done"] for result in results] == [False, False, True]
    best = [result["val_macro_f1"] for result in results]
    assert [result[BEST] for result in results] == [max(best[: n + 1]) for n in range(3)]
    assert results[0]["latency_ms"] > 0
    assert results[0]["parameters"] > 800_000
    assert results[0]["first_step_at"] == results[2]["first_step_at"] > 1e9
    assert [result[EPOCHS] for result in results] == [1, 2, 3]


def test_a_checkpoint_that_is_gone_gives_way_to_the_newest_whole_one(make_trial, tmp_path):
    """As after a crash: Ray's record names one that it had removed, the newest is half written."""
    results = trained(make_trial(), tmp_path)
    weights = tmp_path / "checkpoint_000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    again = make_trial()
    mine = tmp_path / f"trial-{again.trial_id}"
    for folder in sorted(tmp_path.glob("checkpoint_*")):
        mine.mkdir(exist_ok=True)
        folder.rename(mine / folder.name)
    again.restore(at(mine / "checkpoint_000009"))
    last = again.train()
    assert last["training_iteration"] == 3
    assert [row["epoch"] for row in last[HISTORY]] == [0, 1, 2]
    assert scores(last) == scores(results[2])


def test_a_copy_of_another_trial_does_not_take_its_history(make_trial, tmp_path):
    trained(make_trial(), tmp_path / "trial-other", epochs=1)
    copy = make_trial()
    copy.restore(at(tmp_path / "trial-other" / "checkpoint_000000"))
    assert HISTORY not in copy.train()
    own = tmp_path / f"trial-{copy.trial_id}" / "checkpoint_000000"
    own.mkdir(parents=True)
    copy.save_checkpoint(str(own))
    copy.restore(at(own))
    assert [row["epoch"] for row in copy.train()[HISTORY]] == [1, 2]


def test_after_the_last_epoch_there_is_nothing_to_train_but_all_to_export(make_trial, tmp_path):
    trained(make_trial(), tmp_path)
    again = make_trial()
    again.restore(at(tmp_path / "checkpoint_000002"))
    assert again.train()["done"]
    again.save_checkpoint(str(tmp_path))
    name = "validation.safetensors"
    assert (tmp_path / name).read_bytes() == (tmp_path / "checkpoint_000002" / name).read_bytes()


def test_without_any_checkpoint_a_trial_begins_anew(make_trial, tmp_path):
    first = make_trial().train()
    again = make_trial()
    again.restore(at(tmp_path / "nothing" / "checkpoint_000001"))
    assert scores(again.train()) == scores(first)


def test_the_same_process_takes_another_point(make_trial, tmp_path):
    used = make_trial(1e-4)
    used.train()
    assert used.reset({"point": {"train.learning_rate": 3e-3}})
    assert scores(used.train()) == scores(make_trial(3e-3).train())


def test_another_rate_goes_on_from_the_same_weights(make_trial, tmp_path):
    """As PBT copies: the weights are the other's, the settings its own."""
    trained(make_trial(1e-3), tmp_path, epochs=1)
    copy, same = make_trial(2e-3), make_trial(1e-3)
    for trial in (copy, same):
        trial.restore(at(tmp_path / "checkpoint_000000"))
    ours, theirs = copy.train(), same.train()
    assert ours["learning_rate"] == pytest.approx(2 * theirs["learning_rate"])
    assert ours["train_loss"] != theirs["train_loss"]


def test_gpu_hours_end_a_sweep_when_they_are_used_up():
    budget = Budget(gpu_hours=1.0, gpus=0.5)
    for _ in range(3):
        assert not budget("t", {"time_this_iter_s": 1800.0})
        assert not budget.stop_all()
    assert not budget("t", {"time_this_iter_s": 1800.0})
    assert budget.stop_all()
