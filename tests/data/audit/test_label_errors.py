import numpy as np
import pytest

from btray.data.audit.label_errors import find_label_errors, predict_labels


def test_a_confidently_contradicted_label_is_found():
    probabilities = np.array([[0.9, 0.1]] * 9 + [[0.05, 0.95]] + [[0.2, 0.8]] * 10)
    (error,) = find_label_errors(probabilities, ["a"] * 10 + ["b"] * 10, ["a", "b"])
    assert (error.row, error.suggested) == (9, "b")
    assert (error.confidence, error.given) == (0.95, 0.05)


def test_doubt_alone_is_no_error():
    """Below the mean confidence of its label an image counts for none (Northcutt et al. 2021)."""
    probabilities = np.array([[0.9, 0.1]] * 9 + [[0.45, 0.55]] + [[0.1, 0.9]] * 10)
    assert not find_label_errors(probabilities, ["a"] * 10 + ["b"] * 10, ["a", "b"])


@pytest.mark.filterwarnings("error")
def test_a_class_without_images_is_never_suggested():
    probabilities = np.array([[0.1, 0.0, 0.9]] + [[0.9, 0.1, 0.0]] * 9 + [[0.1, 0.9, 0.0]] * 10)
    assert not find_label_errors(probabilities, ["a"] * 10 + ["b"] * 10, ["a", "b", "c"])


def pictures(labels, seed=0):
    """Bars across, bars down, or a block: with noise."""
    generator = np.random.default_rng(seed)
    shapes = {name: np.zeros((32, 32)) for name in "abc"}
    shapes["a"][8:12] = shapes["b"][:, 20:24] = shapes["c"][10:22, 10:22] = 120
    noise = generator.normal(60, 25, (len(labels), 32, 32))
    return (noise + [shapes[name] for name in labels]).clip(0, 255).astype(np.uint8)


def test_planted_errors_are_found_and_little_else():
    generator = np.random.default_rng(1)
    truth = list("abc" * 60)
    given = truth.copy()
    planted = set(generator.choice(len(truth), 9, replace=False).tolist())
    for row in planted:
        given[row] = "abc"[("abc".index(truth[row]) + 1) % 3]
    groups = [f"g{number // 3}" for number in range(len(truth))]
    probabilities, names = predict_labels(pictures(truth), given, groups, seed=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    found = find_label_errors(probabilities, given, names)
    assert planted <= {error.row for error in found}
    assert len(found) <= len(planted) + 2
    assert all(error.suggested == truth[error.row] for error in found if error.row in planted)


@pytest.mark.parametrize("labels", [["a"] * 4, ["a", "a", "a", "b"]])
def test_too_few_images_give_no_prediction(labels):
    assert predict_labels(pictures(labels), labels, list("wxyz"), 0) is None
