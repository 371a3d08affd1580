import numpy as np
import pytest

from btray.data.audit.shortcut import folds, score_shortcut

NAMES = ("size", "border", "noise")
LABELS = ["a", "b", "c"] * 60
GROUPS = [f"g{number // 2}" for number in range(len(LABELS))]


def features(seed=0):
    return np.random.default_rng(seed).normal(size=(len(LABELS), len(NAMES))).astype(np.float32)


def test_a_planted_shortcut_is_found_and_named():
    planted = features()
    planted[:, 1] += np.array([{"a": 0, "b": 8, "c": 16}[label] for label in LABELS])
    found = score_shortcut(planted, NAMES, LABELS, GROUPS, seed=0)
    assert found.accuracy > 0.97
    assert found.chance == pytest.approx(1 / 3)
    assert next(iter(found.features)) == "border"
    assert found.features["border"] > 0.5 > 0.1 > abs(found.features["noise"])
    assert found.verdict == "strong"


def test_without_a_shortcut_the_score_is_near_chance():
    found = score_shortcut(features(), NAMES, LABELS, GROUPS, seed=0)
    assert abs(found.accuracy - found.chance) < 0.12
    assert found.verdict in ("weak", "moderate")
    assert not found.strong


def test_what_only_a_group_has_is_no_shortcut():
    """A feature that names the group predicts nothing of groups never seen."""
    generator = np.random.default_rng(0)
    labels = [label for label in "ab" for _ in range(60)]
    groups = [f"{label}{number}" for label in "ab" for number in range(6) for _ in range(10)]
    places = dict(zip(sorted(set(groups)), generator.permutation(12), strict=True))
    named = np.array([[places[group]] for group in groups], dtype=np.float32)
    found = score_shortcut(named, ("name",), labels, groups, seed=0)
    assert found.accuracy < 0.75


def test_the_same_seed_gives_the_same_score():
    assert score_shortcut(features(), NAMES, LABELS, GROUPS, 3) == score_shortcut(
        features(), NAMES, LABELS, GROUPS, 3
    )


def test_too_few_groups_give_no_score():
    found = score_shortcut(features()[:4], NAMES, ["a", "a", "b", "b"], ["g", "g", "h", "h"], 0)
    assert found.accuracy is None
    assert found.verdict == "unknown"
    assert found.chance == 0.5


def test_as_many_folds_as_every_label_has_groups():
    assert folds(["a"] * 9 + ["b"] * 3, [f"g{n}" for n in range(12)]) == 3
    assert folds(["a"] * 9, [f"g{n}" for n in range(9)]) == 0
