import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from btray.core.bootstrap import mcnemar, paired_bootstrap
from btray.core.metrics import evaluate_probabilities
from btray.errors import UserError
from btray.evaluate.compare import (
    DIFFERING,
    SCORES,
    compare,
    draw_differing,
    most_different,
    verdict,
    write_comparison,
)
from btray.evaluate.evaluate import Evaluation


@pytest.fixture(scope="module")
def make(dataset):
    """An evaluation of the test split with random answers, the better the larger the edge."""

    def make(seed, edge, name="one"):
        rows = dataset.table(["sha256", "label", "group_id"], "test").to_pydict()
        names = dataset.manifest.class_names
        labels = np.array([names.index(label) for label in rows["label"]], dtype=np.int64)
        logits = np.random.default_rng(seed).normal(size=(len(labels), len(names)))
        logits += edge * np.eye(len(names))[labels]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        metrics = {
            **evaluate_probabilities(labels, probabilities, names),
            "dataset": {"content_hash": "0", "source": "phantom", "same_as_trained_on": True},
            "model": {"name": name, "version": f"{seed:012}"},
        }
        return Evaluation(
            split="test",
            class_names=names,
            sha256=rows["sha256"],
            labels=labels,
            logits=logits.astype(np.float32),
            probabilities=probabilities,
            strangeness=np.zeros(len(labels)),
            features=None,
            about={"group_id": rows["group_id"]},
            metrics=metrics,
        )

    return make


@pytest.fixture(scope="module")
def first(make):
    return make(1, 1.0)


@pytest.fixture(scope="module")
def second(make):
    return make(2, 3.0, "two")


@pytest.fixture(scope="module")
def result(first, second):
    return compare(first, second)


def shuffled(evaluation, seed=0):
    """The same answers, rows and classes in another order."""
    rows = np.random.default_rng(seed).permutation(len(evaluation.labels))
    classes = np.arange(len(evaluation.class_names))[::-1]
    return replace(
        evaluation,
        class_names=evaluation.class_names[::-1],
        sha256=[evaluation.sha256[row] for row in rows],
        labels=classes[evaluation.labels[rows]],
        logits=evaluation.logits[rows][:, ::-1],
        probabilities=evaluation.probabilities[rows][:, ::-1],
        about={"group_id": [evaluation.about["group_id"][row] for row in rows]},
    )


def test_scores_are_those_of_scikit_learn(result, first, second):
    assert result["rows"] == len(first.labels)
    for model, evaluation in zip(result["models"], (first, second), strict=True):
        said = evaluation.probabilities.argmax(axis=1)
        wanted = accuracy_score(evaluation.labels, said)
        assert model["accuracy"] == pytest.approx(wanted, abs=1e-12)
        macro = f1_score(evaluation.labels, said, average="macro")
        assert model["macro_f1"] == pytest.approx(macro, abs=1e-12)
        low, high = model["intervals"]["accuracy"]
        assert low < wanted < high
        assert set(model["intervals"]) == set(SCORES)
        assert model["version"] == evaluation.metrics["model"]["version"]
    recalls = [
        recall_score(own.labels, own.probabilities.argmax(axis=1), average=None)
        for own in (first, second)
    ]
    found = np.array(list(result["recall"].values()))
    assert found == pytest.approx(np.transpose(recalls), abs=1e-12)


def test_differences_are_by_the_paired_bootstrap_over_groups(result, first, second):
    said = [own.probabilities.argmax(axis=1) for own in (first, second)]
    drawn = paired_bootstrap(first.labels, said[0], said[1], 4, first.groups, seed=0)
    assert result["differences"] == {
        name: {"value": own.value, "interval": [own.low, own.high]} for name, own in drawn.items()
    }
    one, two = result["models"]
    assert drawn["accuracy"].value == pytest.approx(two["accuracy"] - one["accuracy"])
    test = mcnemar(first.labels, *said)
    assert result["mcnemar"]["p_value"] == test.p_value
    assert 0 < test.p_value < 1e-3


def test_every_row_agrees_or_does_not(result, first, second):
    right = [own.probabilities.argmax(axis=1) == own.labels for own in (first, second)]
    counts = Counter(zip(*(own.tolist() for own in right), strict=True))
    assert result["agreement"] == {
        "both_right": counts[True, True],
        "first_only": counts[True, False],
        "second_only": counts[False, True],
        "both_wrong": counts[False, False],
    }
    assert sum(result["agreement"].values()) == result["rows"]


def test_the_order_of_rows_and_classes_does_not_matter(result, first, second):
    assert compare(first, shuffled(second)) == result
    turned = compare(shuffled(first), second)
    for key in ("agreement", "mcnemar", "recall", "rows"):
        assert turned[key] == result[key]


def test_one_image_twice_is_two_rows(first, second, result):
    def doubled(own):
        return replace(
            own,
            sha256=[*own.sha256, own.sha256[0]],
            labels=np.append(own.labels, (own.labels[0] + 1) % 4),
            probabilities=np.concatenate([own.probabilities, own.probabilities[:1]]),
            about={"group_id": [*own.about["group_id"], own.about["group_id"][0]]},
        )

    found = compare(doubled(first), shuffled_rows(doubled(second)))
    assert found["rows"] == result["rows"] + 1


def shuffled_rows(own):
    rows = np.arange(len(own.labels))[::-1]
    return replace(
        own,
        sha256=[own.sha256[row] for row in rows],
        labels=own.labels[rows],
        probabilities=own.probabilities[rows],
    )


def test_a_model_is_no_better_than_itself(first):
    result = compare(first, first)
    assert result["differences"]["accuracy"] == {"value": 0, "interval": [0, 0]}
    assert result["mcnemar"]["p_value"] == 1
    assert "within noise" in verdict(result)


def test_the_verdict_names_the_better_one(result, first, second):
    assert verdict(result).startswith("The second is more accurate")
    assert verdict(compare(second, first)).startswith("The first is more accurate")


def test_what_cannot_be_compared_is_told_in_a_line(first, second):
    fewer = replace(second, sha256=second.sha256[:-1], labels=second.labels[:-1])
    others = replace(second, sha256=[f"x{sha}" for sha in second.sha256])
    renamed = replace(second, class_names=("ependymoma", *second.class_names[1:]))
    relabelled = replace(second, labels=(second.labels + 1) % 4)
    alone = replace(first, about={"group_id": ["a"] * len(first.labels)})
    cases = {
        f"on {len(first.labels)} images and two .* on {len(fewer.labels)}, of which": fewer,
        "of which they share 0: evaluate both on the same split": others,
        "and two .* ependymoma, .*: compare models of the same classes": renamed,
        "images of other labels": relabelled,
    }
    for message, other in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            compare(first, other)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="80 images of test are all of one group"):
        compare(alone, second)


def test_rows_that_differ_most_come_first():
    one = np.array([[0.9, 0.1], [0.6, 0.4], [0.9, 0.1], [0.8, 0.2]])
    two = np.array([[0.8, 0.2], [0.4, 0.6], [0.0, 1.0], [0.3, 0.7]])
    assert most_different(one, two).tolist() == [2, 3, 1]
    many = np.tile([0.9, 0.1], (100, 1))
    assert len(most_different(many, many[:, ::-1])) == DIFFERING


def test_the_page_is_one_file_with_the_figures(result, first, second, dataset, tmp_path):
    names = write_comparison(result, first, second, dataset, tmp_path / "out")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sorted(names) == [
        "compare.html",
        "compare.json",
        "comparison.png",
        "comparison.svg",
        "differing.png",
    ]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == result
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count('<img src="data:image/') == 2
    assert "<script" not in page
    assert 'role="alert"' not in page
    for model in result["models"]:
        assert f"{model['accuracy']:.2%}" in page
    again = write_comparison(result, first, second, dataset, tmp_path / "again")
    for name in again:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_leak_of_either_model_stands_on_top(result, first, second, dataset, tmp_path):
    leakage = {"rows": 9, "exact": 2, "near": 1, "twins": ["a", "b", "c"], "allowed": True}
    leaky = replace(second, metrics=second.metrics | {"leakage": leakage})
    write_comparison(result, first, leaky, dataset, tmp_path)
    page = (tmp_path / "compare.html").read_text()
    assert "The second: These scores are inflated: 3 of" in page
    assert "The first: These" not in page


def test_without_a_difference_there_is_no_picture_of_one(first, dataset, tmp_path):
    assert draw_differing(first, first, dataset) is None
    names = write_comparison(compare(first, first), first, first, dataset, tmp_path)
    assert "differing.png" not in names
