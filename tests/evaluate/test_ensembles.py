from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from btray.core.bundle import load_bundle, save_bundle
from btray.core.calibration import fit_calibration
from btray.data.dataset import Dataset
from btray.data.decoding import _decode_table
from btray.data.resplit import SplitOptions, resplit
from btray.errors import UserError
from btray.evaluate import evaluate
from btray.evaluate.ensembles import halve, held_out_answers, make_ensemble, validation_scores
from btray.evaluate.evaluate import evaluate_bundle, score

FOLDS = 3


@pytest.fixture(scope="module")
def folded(dataset, tmp_path_factory):
    target = str(tmp_path_factory.mktemp("folded") / "dataset")
    resplit(dataset, target, SplitOptions(folds=FOLDS, test=0.2))
    return Dataset.open(target)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Score in this process, without Ray."""

    def scored(bundle, dataset, split, features):
        rows = dataset.table(["image", "label", "split", "sha256"], split)
        yield score(_decode_table(rows, bundle.card.image), bundle, features)

    monkeypatch.setattr(evaluate, "_scored", scored)
    monkeypatch.setattr(evaluate.cluster, "connect", lambda: None)


@pytest.fixture
def make_member(make_bundle, folded, tmp_path):
    """A bundle that says it was trained on the data set, all folds but one, or its train split."""

    def make(number, fold=None, dataset=folded, **changes):
        plain = make_bundle(tmp_path / f"plain-{number}")
        data = plain.card.train_config["data"] | {"fold": fold}
        provenance = plain.card.provenance.model_copy(
            update={
                "data_hash": dataset.manifest.content_hash,
                "assignment_hash": dataset.manifest.split.assignment_hash,
                "run": f"run-{number}",
            }
        )
        card = plain.card.model_copy(
            update={
                "train_config": plain.card.train_config | {"data": data},
                "provenance": provenance,
                **changes,
            }
        )
        draws = torch.Generator().manual_seed(number)
        head = torch.randn(plain.weights["head.weight"].shape, generator=draws)
        weights = plain.weights | {"head.weight": head}
        return save_bundle(tmp_path / f"member-{number}", weights, card)

    return make


def test_networks_of_one_split_are_calibrated_together(make_member, folded, tmp_path):
    members = [make_member(number) for number in range(2)]
    made = make_ensemble(members, [3, 1], folded, tmp_path / "out")
    opened = load_bundle(str(tmp_path / "out"))
    assert opened.version == made.version
    assert [(m.run, m.weight, m.fold) for m in opened.card.members] == [
        ("run-0", 0.75, None),
        ("run-1", 0.25, None),
    ]
    assert [m.version for m in opened.card.members] == [b.version for b in members]
    own = [evaluate_bundle(bundle, folded, "validation") for bundle in members]
    wanted = 0.75 * softmax(own[0].logits, axis=1) + 0.25 * softmax(own[1].logits, axis=1)
    found = evaluate_bundle(opened, folded, "validation")
    np.testing.assert_allclose(softmax(found.logits, axis=1), wanted, atol=1e-5)
    assert found.sha256 == own[0].sha256
    assert opened.card.calibration == fit_calibration(
        found.logits, found.labels, found.groups, opened.card.class_names
    )
    assert opened.card.metrics["val_accuracy"] == found.metrics["accuracy"]
    evaluate_bundle(opened, folded, "test")


def test_networks_of_folds_are_calibrated_on_what_each_has_not_seen(make_member, folded, tmp_path):
    members = [make_member(number, fold=number % FOLDS) for number in range(FOLDS + 1)]
    made = make_ensemble(members, [], folded, tmp_path / "out")
    rows = folded.table(["sha256", "split"]).to_pylist()
    outside = sum(row["split"] != "test" for row in rows)
    assert made.card.calibration.rows == outside
    answers = held_out_answers(made, folded)
    labels, logits = answers.labels, answers.logits
    assert answers.features is None
    assert len(labels) == len(logits) == outside
    # Fold 0 was held out by two of the networks, fold 1 by one.
    first = folded.with_fold(0).count("validation")
    pair = [evaluate_bundle(members[n], folded, "validation") for n in (0, FOLDS)]
    wanted = np.mean([softmax(answer.logits, axis=1) for answer in pair], axis=0)
    np.testing.assert_allclose(softmax(logits[:first], axis=1), wanted, atol=1e-5)
    alone = evaluate_bundle(members[1], folded, "validation")
    assert alone.sha256 == folded.with_fold(1).table(["sha256"], "validation")["sha256"].to_pylist()
    assert alone.metrics["dataset"]["fold"] == 1
    np.testing.assert_allclose(logits[first : first + len(alone.labels)], alone.logits, atol=1e-4)


@pytest.mark.parametrize("split", ["validation", "train"])
def test_an_ensemble_over_folds_is_evaluated_on_test_only(make_member, folded, tmp_path, split):
    members = [make_member(number, fold=number) for number in range(2)]
    made = make_ensemble(members, [], folded, tmp_path / "out")
    with pytest.raises(UserError, match=r"were trained on rows of .*; evaluate it on test"):
        evaluate_bundle(made, folded, split)
    assert evaluate_bundle(made, folded, "test").metrics["rows"] == folded.count("test")


def test_a_half_bundle_is_measured_and_calibrated_with_its_rounded_weights(
    make_member, folded, tmp_path
):
    whole = make_member(0)
    half = halve(whole, folded, tmp_path / "half")
    answers = evaluate_bundle(load_bundle(str(tmp_path / "half")), folded, "validation")
    assert half.card.precision == "float16"
    assert half.card.calibration == fit_calibration(
        answers.logits, answers.labels, answers.groups, whole.card.class_names
    )
    assert half.detector is not None
    assert half.seen is not None
    assert half.card.metrics == validation_scores(
        answers.labels, answers.logits, whole.card.class_names
    )
    assert half.card.metrics["val_accuracy"] == answers.metrics["accuracy"]
    before = evaluate_bundle(whole, folded, "validation").logits
    assert not np.array_equal(before, answers.logits)
    np.testing.assert_allclose(answers.logits, before, atol=0.05)


def test_what_is_no_ensemble(make_member, folded, dataset, tmp_path):
    first, second = make_member(0), make_member(1)
    made = make_ensemble([first, second], [], folded, tmp_path / "made")
    larger = first.card.image.model_copy(update={"size": 64})
    names = first.card.class_names[::-1]
    cases = {
        "two bundles or more": [first],
        "in the ensemble already": [first, first],
        "an ensemble itself": [first, made],
        r"image.size=64, .* with 32": [first, make_member(2, image=larger)],
        "other classes": [first, make_member(3, class_names=names)],
        "may have learned what is test": [first, make_member(4, dataset=dataset)],
        "one is of a fold and one is not": [first, make_member(5, fold=1)],
    }
    for message, bundles in cases.items():
        with pytest.raises(UserError, match=message) as error:
            make_ensemble(bundles, [], folded, tmp_path / "out")
        assert "\n" not in str(error.value)
    for votes, message in (([1], "1 weights for 2 bundles"), ([1, 0], "above 0")):
        with pytest.raises(UserError, match=message):
            make_ensemble([first, second], votes, folded, tmp_path / "out")
    with pytest.raises(UserError, match="not the data set"):
        halve(first, dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="not empty; choose another folder"):
        halve(first, folded, Path(made.uri))


def test_other_folds_of_the_same_splits_are_noticed(make_member, folded):
    bundle = make_member(0, fold=1)
    other = bundle.card.provenance.model_copy(update={"assignment_hash": "another"})
    moved = bundle.card.model_copy(update={"provenance": other})
    with pytest.raises(UserError, match="its folds are not those"):
        evaluate_bundle(replace(bundle, card=moved), folded, "validation")
