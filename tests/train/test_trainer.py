import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from ray.train import TrainingFailedError
from safetensors.torch import load_file

from btray.core.bundle import load_bundle
from btray.data.dataset import Dataset
from btray.errors import UserError
from btray.evaluate.evaluate import evaluate_bundle
from btray.train.storage import RunFolder
from btray.train.trainer import fit, resume

pytestmark = pytest.mark.cluster


def scores(history):
    """A history without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in history]


@pytest.fixture(scope="module")
def undisturbed(cluster, config_in, tmp_path_factory):
    return fit(config_in(tmp_path_factory.mktemp("undisturbed"), **{"train.epochs": 6}))


def test_a_run_leaves_a_bundle_a_history_and_the_best_checkpoints(undisturbed):
    run = undisturbed
    assert [row["epoch"] for row in run.history] == list(range(6))
    assert run.bundle.card.class_names == ("glioma", "meningioma", "notumor", "pituitary")
    assert run.folder.local is not None
    assert json.loads((run.folder.local / "history.json").read_text()) == run.history
    assert load_bundle(str(run.folder.local)).version == run.bundle.version
    checkpoints = list(run.folder.local.glob("checkpoint_2*"))
    assert 2 <= len(checkpoints) <= 3
    assert (run.folder.local / "btray.log").stat().st_size


def test_validation_counts_every_row_once(cluster, make_config, dataset_path):
    dataset = Dataset.open(str(dataset_path))
    run = fit(make_config(**{"train.epochs": 1, "data.evaluation_batch_size": 7}))
    (checkpoint,) = run.folder.local.glob("checkpoint_2*")
    validation = load_file(checkpoint / "validation.safetensors")
    evaluation = evaluate_bundle(run.bundle, dataset, "validation")
    assert len(validation["labels"]) == dataset.count("validation")
    assert validation["labels"].tolist() == evaluation.labels.tolist()
    torch.testing.assert_close(
        validation["logits"], torch.from_numpy(evaluation.logits), rtol=0, atol=1e-5
    )
    assert run.history[0]["val_accuracy"] == evaluation.metrics["accuracy"]


def test_same_seed_gives_the_same_metrics_and_weights(undisturbed, make_config):
    again = fit(make_config("again", **{"train.epochs": 6}))
    assert scores(again.history) == scores(undisturbed.history)
    for name, weights in undisturbed.bundle.weights.items():
        assert torch.equal(weights, again.bundle.weights[name]), name


def test_another_seed_gives_other_metrics(undisturbed, make_config):
    other = fit(make_config("other", seed=2, **{"train.epochs": 1}))
    assert scores(other.history) != scores(undisturbed.history)[:1]


def test_one_worker_and_two_learn_alike(cluster, make_config):
    one = fit(make_config("one", **{"train.epochs": 8, "train.workers": 1}))
    two = fit(make_config("two", **{"train.epochs": 8, "train.workers": 2}))
    assert min(one.history[-1]["val_accuracy"], two.history[-1]["val_accuracy"]) > 0.9
    assert abs(one.history[0]["train_loss"] - two.history[0]["train_loss"]) < 0.1


def test_a_killed_worker_is_replaced_and_nothing_is_lost(undisturbed, make_config, killer):
    display = killer(epoch=2)
    run = fit(make_config("killed", **{"train.epochs": 6}), display)
    assert display.killed
    assert len(display.attempts) == 2
    assert display.attempts[1] >= 1
    assert scores(run.history) == scores(undisturbed.history)


def test_a_streamed_run_goes_on_within_an_epoch_as_if_undisturbed(
    undisturbed, make_config, within_killer
):
    """Beyond the cache limit, with checkpoints within epochs, and killed past one of them."""
    settings = {"train.epochs": 6, "train.checkpoint_every": 2, "data.cache_limit": 0}
    config = make_config("within", **settings)
    display = within_killer(Path(config.run.storage), epoch=1, step=6)
    run = fit(config, display)
    # A checkpoint counts once the controller has polled it: the one before the last has.
    assert display.attempts[1] in {(1, 2), (1, 4), (1, 6), (1, 8)}
    assert scores(run.history) == scores(undisturbed.history)
    for name, weights in undisturbed.bundle.weights.items():
        assert torch.equal(weights, run.bundle.weights[name]), name


CRAFT = {
    "train.epochs": 4,
    "train.checkpoint_every": 2,
    "train.ema": 0.95,
    "train.mixup": 0.4,
    "train.accumulation": 2,
    "train.freeze_epochs": 1.3,
    "train.schedule": "plateau",
    "train.metric": "loss",
    "model.views": 2,
    "data.balanced": "true",
}


def test_all_the_craft_goes_on_within_an_epoch_as_if_undisturbed(
    cluster, config_in, make_config, within_killer, tmp_path
):
    straight = fit(config_in(tmp_path / "straight", **CRAFT))
    config = make_config("craft", **CRAFT)
    display = within_killer(Path(config.run.storage), epoch=1, step=6)
    run = fit(config, display)
    assert display.attempts[1] in {(1, 2), (1, 4), (1, 6), (1, 8)}
    assert scores(run.history) == scores(straight.history)
    for name, weights in straight.bundle.weights.items():
        assert torch.equal(weights, run.bundle.weights[name]), name
    best = min(straight.history, key=lambda row: row["val_loss"])
    assert straight.bundle.card.provenance.epoch == best["epoch"]


def test_a_bundle_is_what_the_next_run_starts_from(undisturbed, make_config):
    """With the backbone standing still throughout, only the classifier is another's."""
    settings = {"train.epochs": 1, "train.freeze_epochs": 1, "train.learning_rate": 1e-3}
    run = fit(make_config("tuned", **settings, **{"model.pretrained": undisturbed.bundle.uri}))
    assert run.history[0]["val_accuracy"] > 0.9
    assert run.bundle.card.provenance.initial_weights == "file"
    assert "pretrained" not in run.bundle.card.train_config["model"]
    for name, weights in undisturbed.bundle.weights.items():
        if name.endswith("num_batches_tracked"):
            continue
        same = torch.equal(weights, run.bundle.weights[name])
        assert same is not name.startswith("head."), name


def test_a_failed_run_is_resumed(undisturbed, make_config, killer):
    settings = {"train.epochs": 6, "train.max_failures": 0}
    config = make_config("failed", **settings)
    with pytest.raises(TrainingFailedError):
        fit(config, killer(epoch=1))
    folder = f"{config.run.storage}/failed"
    with pytest.raises(UserError, match="--resume"):
        fit(config)
    run = resume(folder)
    assert scores(run.history) == scores(undisturbed.history)
    with pytest.raises(UserError, match="finished"):
        resume(folder)


def test_patience_ends_a_run(cluster, make_config):
    still = {"train.epochs": 6, "train.patience": 2, "train.learning_rate": 1e-12}
    run = fit(make_config(**still))
    assert len(run.history) == 3


def test_a_diverging_loss_is_one_clear_line(cluster, make_config):
    wild = {"train.optimizer": "sgd", "train.learning_rate": 1e30, "train.gradient_clip": 0}
    config = make_config(**wild, **{"train.warmup_epochs": 0})
    with pytest.raises(UserError, match=r"training diverged.*learning_rate") as error:
        fit(config)
    assert "\n" not in str(error.value)
    RunFolder.reopen(f"{config.run.storage}/run")  # which a finished run cannot be


def test_class_weights_change_the_loss(undisturbed, make_config):
    settings = {"train.epochs": 1, "train.class_weights": True, "train.label_smoothing": 0.2}
    weighted = fit(make_config("weighted", **settings))
    assert weighted.history[0]["train_loss"] != undisturbed.history[0]["train_loss"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model.name": "resnet19"}, "resnet18"),
        ({"data.batch_size": 1000}, "lower it"),
        ({"data.dataset": "/nowhere"}, "no btray data set"),
        ({"train.workers": 64, "data.batch_size": 64}, "lower train.workers"),
        ({"train.gpu": "always"}, "GPUs"),
        ({"train.precision": "float16"}, "float16 needs a GPU"),
        ({"train.sync_batch_norm": True}, "on GPUs only"),
        ({"train.optimizer": "adamx"}, "nearest: .*adam"),
        ({"model.pretrained": "/nowhere.pth"}, "no such file"),
        ({"model.drop_path": 0.1}, "no residual blocks"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(
    cluster, make_config, setting, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        fit(make_config(**setting))
    assert not (tmp_path / "runs").exists()


def test_a_damaged_data_set_is_one_clear_line(cluster, make_config, dataset_path, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset_path, damaged)
    part = next((damaged / "rows").iterdir())
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"damaged/rows: missing or damaged .* import the data set"
    ) as error:
        fit(make_config(**{"data.dataset": str(damaged)}))
    assert "\n" not in str(error.value)


def test_a_row_that_cannot_be_decoded_is_named(cluster, make_config, dataset_path, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(dataset_path, damaged)
    part = next((damaged / "rows").iterdir())
    rows = pyarrow.parquet.read_table(part)
    images = [rows["image"][0].as_py()[:100], *rows["image"].to_pylist()[1:]]
    where = rows.column_names.index("image")
    pyarrow.parquet.write_table(rows.set_column(where, "image", pa.array(images)), part)
    with pytest.raises(UserError, match=f"row with sha256 {rows['sha256'][0]}") as error:
        fit(make_config(**{"data.dataset": str(damaged)}))
    assert "\n" not in str(error.value)


def test_a_missing_row_of_the_data_set_is_noticed(cluster, make_config, dataset_path, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(dataset_path, partial)
    part = next((partial / "rows").iterdir())
    rows = pyarrow.parquet.read_table(part)
    pyarrow.parquet.write_table(rows.slice(5), part)
    with pytest.raises(UserError, match=r"rows are missing or damaged \(\d+ rows of \d+\)"):
        fit(make_config(**{"data.dataset": str(partial)}))


def test_a_run_is_not_resumed_on_another_data_set(cluster, make_config):
    folder, _ = RunFolder.create(make_config())
    folder.write("data.sha256", b"what it was")
    with pytest.raises(UserError, match="not the data set this run began with"):
        resume(folder.uri)
