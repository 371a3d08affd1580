"""The least that is expected of the bundle, class by class."""

import numpy as np
import pytest

from btray.core.labels import CLASS_NAMES

RIGHT = 0.85
"""Least share of right answers, for slices most of which it was trained on."""


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_most_real_slices_of_a_class_are_known(answers, name):
    assert np.mean([one.class_name == name for one in answers[name]]) >= RIGHT


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_most_real_slices_of_a_class_are_answered(answers, name):
    assert np.mean([one.abstain for one in answers[name]]) <= 0.3


def test_phantoms_with_a_tumour_are_suspected_more_than_those_without(phantoms, phantom_answers):
    suspicion = np.array([1 - one.probabilities["notumor"] for one in phantom_answers])
    ill = np.array([one.label != "notumor" for one in phantoms])
    assert suspicion[ill].mean() > suspicion[~ill].mean()
