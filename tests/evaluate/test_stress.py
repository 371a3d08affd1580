import json

import numpy as np
import pytest

from btray.core.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from btray.core.images import decode, encode_png
from btray.core.predictor import Predictor
from btray.core.preprocess import to_square
from btray.core.unstyled import without_style
from btray.evaluate import stress
from btray.evaluate.evaluate import evaluate_bundle
from btray.evaluate.numbers import assessed
from btray.evaluate.style_only import score_style


@pytest.fixture(scope="module")
def evaluation(cluster, bundle, dataset):
    return evaluate_bundle(bundle, dataset, "test", features=True)


def right_after(change, bundle, dataset, evaluation):
    """Whether each answer is right, one image at a time and without Ray."""
    predictor = Predictor(bundle)
    images = dataset.images("sha256", evaluation.sha256)
    answers = [
        predictor.logits(to_square(change(decode(images[name])), bundle.card.image)[None]).argmax()
        for name in evaluation.sha256
    ]
    return np.array(answers) == evaluation.labels


@pytest.mark.cluster
def test_style_is_taken_away_from_every_row(evaluation, bundle, dataset):
    told = []
    found = stress.shortcuts(bundle, dataset, evaluation, lambda *news: told.append(news))
    assert found["images"] == dataset.count("test")
    assert found["plain"] == evaluation.metrics["accuracy"]
    assert told[-1] == (found["images"], found["images"])
    by_name = {variant["name"]: variant for variant in found["variants"]}
    assert list(by_name) == list(stress.SIGNS)
    expected = right_after(without_style, bundle, dataset, evaluation)
    assert by_name["without style"]["accuracy"] == expected.mean()
    low, high = by_name["without style"]["interval"]
    assert low <= expected.mean() <= high


@pytest.mark.cluster
def test_faults_are_put_into_some_rows(evaluation, bundle, dataset, monkeypatch):
    monkeypatch.setattr(stress, "FAULTY", len(evaluation.labels))
    found = stress.robustness(bundle, dataset, evaluation)
    assert list(found["corruptions"]) == list(CORRUPTIONS)
    assert {len(row) for row in found["corruptions"].values()} == {len(SEVERITIES)}
    expected = right_after(
        lambda image: corrupt(image, "noise", 3), bundle, dataset, evaluation
    ).mean()
    assert found["corruptions"]["noise"][2] == expected


@pytest.mark.cluster
def test_style_alone(evaluation, dataset):
    found = score_style(dataset, "test")
    counts = np.bincount(evaluation.labels)
    assert found["chance"] == counts.max() / counts.sum()
    assert 0 <= found["accuracy"] <= 1
    assert score_style(dataset, "test") == found


@pytest.mark.cluster
def test_strangers_and_explanations(evaluation, bundle, dataset, monkeypatch):
    monkeypatch.setattr(stress, "EXPLAINED", 4)
    kinds = stress.strangers_told(bundle, evaluation)
    assert {"photograph", "text", "noise"} <= {kind["kind"] for kind in kinds}
    assert all(kind["images"] > 0 and 0 <= kind["auroc"] <= 1 for kind in kinds)
    found = stress.explanations(bundle, dataset, evaluation)
    assert found["pointing"] is None  # no masks here
    deletion = found["deletion"]
    assert deletion["images"] == 4
    assert len(deletion["steps"]) == len(deletion["curve"]) == len(deletion["random_curve"])
    assert deletion["curve"][0] == pytest.approx(deletion["random_curve"][0])
    monkeypatch.setattr(stress, "SHOWN", 2)
    (title, picture), _ = stress.overlays(bundle, dataset, evaluation)
    assert title.startswith("is ")
    assert decode(picture).shape == (32, 32)


@pytest.mark.cluster
def test_pointing_where_tumours_are_outlined(evaluation, bundle, dataset, monkeypatch):
    monkeypatch.setattr(stress, "EXPLAINED", 6)
    stored = stress._stored

    def outlined(*arguments):
        for number, (image, _) in enumerate(stored(*arguments)):
            pixels = decode(image)
            mask = np.zeros_like(pixels)
            mask[: len(mask) // 3] = 255 * (number % 2)
            yield image, encode_png(mask)

    monkeypatch.setattr(stress, "_stored", lambda *arguments: list(outlined(*arguments)))
    found = stress.explanations(bundle, dataset, evaluation)["pointing"]
    assert found["images"] == 3  # an empty mask outlines nothing
    assert found["hit_rate"] in (0, 1 / 3, 2 / 3, 1)
    assert 0.3 < found["chance"] < 0.6


@pytest.mark.cluster
def test_rows_are_drawn_from_every_group_before_a_second(evaluation):
    groups = evaluation.groups
    count = len(np.unique(groups))
    rows = stress.choose(evaluation, count)
    assert len(np.unique(groups[rows])) == len(rows) == count
    assert len(stress.choose(evaluation, 10**6)) == len(groups)
    assert np.array_equal(stress.choose(evaluation, 7), stress.choose(evaluation, 7))


@pytest.mark.cluster
def test_all_that_is_said_is_json_and_names_what_was_not_run(evaluation, bundle):
    metrics = assessed(evaluation, bundle).metrics
    assert json.loads(json.dumps(metrics, allow_nan=False))["rows"] == len(evaluation.labels)
    assert set(metrics["not_run"]) == {"shortcuts", "robustness", "explanations", "kinds"}
    low, high = metrics["intervals"]["accuracy"]
    assert low <= metrics["accuracy"] <= high
    assert metrics["strange"]["flagged"] == (evaluation.strangeness > bundle.strange_above).mean()
    assert metrics["subjects"] == {"patients": None, "series": None}
