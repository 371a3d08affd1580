import numpy as np

from btray.data.audit.twins import Twins, torn_patients

NUMBERS = np.array([0, 1, 0, 2, 1, 1, 3])


def test_sets_of_two_or_more_the_largest_first():
    twins = Twins.of(NUMBERS)
    assert twins.groups == [[1, 4, 5], [0, 2]]
    assert twins.images == 5


def test_a_set_is_torn_by_different_keys_and_not_by_missing_ones():
    keys = ["train", "train", None, "test", "test", "train", "test"]
    assert Twins.of(NUMBERS).torn(keys).groups == [[1, 4, 5]]
    assert not Twins.of(NUMBERS).torn([None] * 7).groups


def test_patients_in_several_splits_are_counted():
    patients = ["p", "p", "q", "q", None, None]
    assert torn_patients(patients, ["train", "test", "train", "train", "train", "test"]) == 1
    assert torn_patients(patients, ["train", None, "train", "train", "train", "test"]) == 0
