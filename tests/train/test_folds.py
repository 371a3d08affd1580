import json
import os
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
import ray
from safetensors.numpy import save

from btray.config import TrainConfig, resolve_config
from btray.core.bundle import load_bundle
from btray.data.dataset import Dataset
from btray.data.resplit import SplitOptions, resplit
from btray.errors import UserError
from btray.train import folds as folds_module
from btray.train.folds import (
    FoldsFailedError,
    fit_folds,
    fold_scores,
    is_cross_validation,
    resume_folds,
    summary,
)
from btray.train.inputs import check_groups, open_folds
from btray.train.learner import VALIDATION
from btray.train.plan import Placement, runs_at_once, spread
from btray.train.storage import RunFolder
from btray.train.trainer import Stopped, open_board


@pytest.fixture(scope="module")
def folded(dataset_path, tmp_path_factory):
    """The data set of training with two folds beside its test split."""
    target = tmp_path_factory.mktemp("folded") / "dataset"
    resplit(Dataset.open(str(dataset_path)), str(target), SplitOptions(folds=2, test=0.2))
    return target


@pytest.fixture
def config(make_config, folded):
    one = {"data.dataset": folded, "train.workers": 1, "train.cpus_per_worker": 1}
    return make_config("cv", **one, **{"train.epochs": 1})


@pytest.mark.cluster
def test_a_cross_validation_answers_every_row_outside_test_once_and_is_resumed(
    cluster, config, folded
):
    """One fold fails first: the other is kept and not trained again."""
    shown = []

    class Display:
        def show(self, update):
            shown.append(update)

    dataset = Dataset.open(str(folded))
    folder = f"{config.run.storage}/cv"
    with pytest.MonkeyPatch.context() as patch:
        whole = folds_module._of_fold

        def diverging(config, folder, fold, slots, cpus):
            own = whole(config, folder, fold, slots, cpus)
            wild = {"optimizer": "sgd", "learning_rate": 1e30, "gradient_clip": 0.0}
            wild |= {"warmup_epochs": 0.0}
            train = own.train.model_copy(update=wild if fold == 1 else {})
            return own.model_copy(update={"train": train})

        patch.setattr(folds_module, "_of_fold", diverging)
        with pytest.raises(
            FoldsFailedError, match=r"1 of 2 folds failed: fold 1: training diverged"
        ):
            fit_folds(config, 2, Display())
    assert is_cross_validation(folder)
    assert {update["fold"] for update in shown if update["kind"] == "epoch"} == {0}
    first = load_bundle(f"{folder}/fold-0")
    # What made it diverge is mended: the settings of the cross-validation are the run's own.
    shutil.rmtree(f"{folder}/fold-1")
    shown.clear()
    done = resume_folds(folder, Display())
    assert {update["fold"] for update in shown if update["kind"] == "epoch"} == {1}
    assert load_bundle(f"{folder}/fold-0").version == first.version
    assert [load_bundle(uri).card.train_config["data"]["fold"] for uri in done.bundles] == [0, 1]
    assert load_bundle(done.bundles[1]).card.provenance.run == "cv/fold-1"

    rows = pyarrow.parquet.read_table(done.folder.local / "out_of_fold.parquet")
    stored = dataset.table(["sha256", "split", "label", "fold"]).to_pylist()
    wanted = {(r["sha256"], r["label"], r["fold"]) for r in stored if r["split"] != "test"}
    found = Counter(
        (r["sha256"], r["label"], r["fold"])
        for r in rows.select(["sha256", "label", "fold"]).to_pylist()
    )
    assert found.keys() == wanted
    assert set(found.values()) == {1}
    logits = np.array(rows["logits"].to_pylist())
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(rows["probabilities"].to_pylist()), shares, atol=1e-6)

    scores = json.loads((done.folder.local / "folds.json").read_text())
    assert scores == done.scores
    right = logits.argmax(axis=1) == [
        dataset.manifest.class_names.index(label) for label in rows["label"].to_pylist()
    ]
    assert scores["out_of_fold"]["accuracy"] == pytest.approx(right.mean())
    per_fold = [fold["accuracy"] for fold in scores["per_fold"]]
    assert scores["mean"]["accuracy"] == pytest.approx(np.mean(per_fold))
    assert scores["out_of_fold"]["rows"] == sum(fold["rows"] for fold in scores["per_fold"])
    with pytest.raises(UserError, match="is finished"):
        resume_folds(folder)


@pytest.mark.cluster
def test_a_cross_validation_told_to_stop_makes_checkpoints_first(cluster, make_config, folded):
    one = {"data.dataset": folded, "train.workers": 1, "train.cpus_per_worker": 1}
    begun, told = {}, []

    class Display:
        def show(self, update):
            if update["kind"] == "attempt":
                begun[update["fold"]] = (update["epoch"], update["step"])
            if update["kind"] == "step" and update["epoch"] == 1 and not told:
                told.append(update["fold"])
                os.kill(os.getpid(), 15)

    with pytest.raises(Stopped) as stopped:
        fit_folds(make_config("cv", **one, **{"train.epochs": 60}), 2, Display())
    done = resume_folds(str(stopped.value), Display())
    assert begun[told[0]] > (1, 0)
    assert [len(history) for history in done.histories] == [60, 60]


def test_the_answers_of_all_folds_are_pooled_in_their_stored_order(make_config, folded):
    """Of runs whose networks gave answers written here by hand."""
    dataset = Dataset.open(str(folded))
    names = dataset.manifest.class_names
    folder, _ = RunFolder.create(make_config("cv"))
    given = []
    for fold in range(2):
        rows = dataset.with_fold(fold).table(["sha256", "label"], "validation").to_pylist()
        labels = np.array([names.index(row["label"]) for row in rows])
        logits = np.random.default_rng(fold).normal(size=(len(rows), 4)).astype(np.float32)
        run = f"fold-{fold}"
        folder.write(f"{run}/{VALIDATION}", save({"logits": logits, "labels": labels}))
        folder.write(f"{run}/bundle/bundle.json", b'{"provenance": {"epoch": 7}}')
        folder.write(f"{run}/history.json", b"[]")
        given += [
            (row["sha256"], fold, row["label"], *z) for row, z in zip(rows, logits, strict=True)
        ]
    done = folds_module._finish(dataset, folder, 2)
    rows = pyarrow.parquet.read_table(folder.local / "out_of_fold.parquet").to_pylist()
    assert [(r["sha256"], r["fold"], r["label"], *r["logits"]) for r in rows] == given
    stored = dataset.table(["sha256", "split"]).to_pylist()
    outside = Counter(row["sha256"] for row in stored if row["split"] != "test")
    assert Counter(row["sha256"] for row in rows) == outside
    logits = np.array([row["logits"] for row in rows])
    right = logits.argmax(axis=1) == [names.index(row["label"]) for row in rows]
    assert done.scores["out_of_fold"]["accuracy"] == pytest.approx(right.mean())
    sizes = [fold["rows"] for fold in done.scores["per_fold"]]
    assert sum(sizes) == len(rows) == done.scores["out_of_fold"]["rows"]
    assert done.scores["per_fold"][1]["accuracy"] == pytest.approx(right[sizes[0] :].mean())
    assert json.loads((folder.local / "folds.json").read_text()) == done.scores
    assert [fold["epoch"] for fold in done.scores["per_fold"]] == [7, 7]
    assert done.scores["doubtful_labels"] > 0


def test_answers_to_other_rows_are_never_pooled(make_config, folded):
    dataset = Dataset.open(str(folded))
    folder, _ = RunFolder.create(make_config("cv"))
    labels = np.zeros(dataset.with_fold(0).count("validation"), dtype=np.int64)
    logits = np.zeros((len(labels), 4), dtype=np.float32)
    folder.write(f"fold-0/{VALIDATION}", save({"logits": logits, "labels": labels}))
    with pytest.raises(RuntimeError, match="not those of fold 0"):
        folds_module._finish(dataset, folder, 2)


def test_a_cross_validation_is_not_resumed_on_other_folds(make_config, folded):
    folder, _ = RunFolder.create(make_config("cv", **{"data.dataset": folded}))
    assert not is_cross_validation(folder.uri)
    with pytest.raises(UserError, match="no cross-validation"):
        resume_folds(folder.uri)
    folder.write(folds_module.MARK, b'{"folds": 2, "rows": "other"}')
    assert is_cross_validation(folder.uri)
    with pytest.raises(UserError, match="not the data set this cross-validation began with"):
        resume_folds(folder.uri)


@pytest.mark.cluster
def test_folds_run_beside_each_other_where_there_is_room(cluster, config, monkeypatch):
    at_work, most = set(), []

    @ray.remote(num_cpus=0)
    def task(config, board, own):
        return "it failed" if config.data.fold == 3 else None

    class Counting:
        def options(self, **_):
            return self

        def remote(self, config, board, own):
            at_work.add(config.data.fold)
            most.append(len(at_work))
            return task.remote(config, board, own)

    wait = ray.wait

    def waiting(refs, num_returns):
        done = wait(refs, num_returns=num_returns)
        at_work.pop()
        return done

    monkeypatch.setattr(folds_module, "_train_fold", Counting())
    monkeypatch.setattr(folds_module.ray, "wait", waiting)
    folder = folds_module.RunFolder.locate(f"{config.run.storage}/cv")
    configs = {fold: folds_module._of_fold(config, folder, fold, 2, 1) for fold in range(5)}
    assert folds_module._train_all(configs, 2, open_board(0)) == {3: "it failed"}
    assert max(most) == 2
    assert len(most) == 5
    halves = {own.data.cache_limit for own in configs.values()}
    assert halves == {folds_module.cache_limit(config) // 2}


@pytest.mark.parametrize(("cpus", "workers", "runs"), [(1, 1, 4), (2, 1, 2), (1, 3, 1), (4, 2, 1)])
def test_as_many_runs_at_once_as_there_are_cores_for(monkeypatch, cpus, workers, runs):
    monkeypatch.setattr("btray.train.plan.usable_cores", lambda: 4)
    monkeypatch.setattr("btray.train.plan._nodes", lambda: [{"CPU": 6.0}])
    assert runs_at_once(Placement(workers, cpus, gpu=False)) == runs


def test_on_gpus_workers_take_fewer_cores_so_that_more_folds_find_one(monkeypatch):
    monkeypatch.setattr("btray.train.plan.usable_cores", lambda: 16)
    monkeypatch.setattr("btray.train.plan._nodes", lambda: [{"CPU": 18.0, "GPU": 4.0}])
    monkeypatch.setattr(
        "btray.train.plan.place", lambda config: Placement(1, 8, config.gpu != "never")
    )
    assert spread(TrainConfig(), 5) == (4, 4)
    assert spread(TrainConfig(), 3) == (3, 5)
    assert spread(TrainConfig(cpus_per_worker=8), 5) == (2, 8)
    assert spread(TrainConfig(gpu="never"), 5) == (2, 8)


def test_other_folds_than_the_data_set_has(config, folded):
    assert open_folds(config, 2).manifest.split.folds == 2
    with pytest.raises(UserError, match=r"has 2 folds, not 5; .*data split .* --folds 5"):
        open_folds(config, 5)
    with pytest.raises(UserError, match="leave out --folds"):
        open_folds(resolve_config(config.model_dump(mode="json"), ["data.fold=1"]), 2)


def test_a_data_set_without_folds(make_config):
    with pytest.raises(UserError, match=r"has no folds, not 5"):
        open_folds(make_config(), 5)


def test_a_group_in_two_folds_is_a_leak():
    splits = ["train", "validation", "train", "excluded"]
    check_groups("x", "aabb", splits, [0, 0, 1, 2])
    with pytest.raises(UserError, match=r"x: images that belong together .* 0 and in 1"):
        check_groups("x", "aaab", splits, [0, 0, 1, 2])
    with pytest.raises(UserError, match="0 and in test"):
        check_groups("x", "aa", ["train", "test"], [0, None])


def test_the_summary_is_of_the_sample():
    fold = {"accuracy": 0.5, "macro_f1": 0.4, "macro_auroc": None, "loss": 1.0}
    found = summary([fold, fold | {"accuracy": 0.7, "macro_auroc": 0.9}])
    assert found["mean"]["accuracy"] == pytest.approx(0.6)
    assert found["standard_deviation"]["accuracy"] == pytest.approx(0.02**0.5)
    assert found["mean"]["macro_auroc"] is found["standard_deviation"]["macro_auroc"] is None


def test_the_loss_is_that_of_the_probabilities():
    rows = pyarrow.table({"label": ["b", "a"], "probabilities": [[0.5, 0.5], [0.25, 0.75]]})
    assert fold_scores(rows, ("a", "b"))["loss"] == pytest.approx(-np.log([0.5, 0.25]).mean())
