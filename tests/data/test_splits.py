import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btray.data.splits import (
    assign_folds,
    assign_splits,
    check_fractions,
    check_patients,
    stratify,
    untorn_folds,
)
from btray.errors import UserError

FRACTIONS = {"train": 0.7, "validation": 0.15, "test": 0.15}


def assign(labels, groups, official=None, seed=0, fractions=FRACTIONS):
    return assign_splits(labels, groups, official or [None] * len(labels), fractions, seed)


def rows(sizes_by_label):
    pairs = [
        (label, f"{label}{number}")
        for label, sizes in sizes_by_label.items()
        for number, size in enumerate(sizes)
        for _ in range(size)
    ]
    return [label for label, _ in pairs], [group for _, group in pairs]


sizes = st.lists(st.integers(1, 12), min_size=3, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), sizes, min_size=1), st.integers(0, 1000))
def test_no_group_crosses_and_fractions_hold_within_a_group(by_label, seed):
    labels, groups = rows(by_label)
    splits = assign(labels, groups, seed=seed)
    seen = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        seen[group].add(split)
    assert all(len(found) == 1 for found in seen.values())
    counts = Counter(zip(labels, splits, strict=True))
    for label, group_sizes in by_label.items():
        for split, fraction in FRACTIONS.items():
            surplus = counts[label, split] - fraction * sum(group_sizes)
            assert counts[label, split] > 0
            assert -2 * max(group_sizes) <= surplus <= max(group_sizes)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 15)), min_size=1), st.integers(0, 9)
)
def test_groups_of_several_labels_do_not_cross(pairs, seed):
    labels, groups = rows({"a": [1] * 20, "b": [1] * 20})
    labels += [label for label, _ in pairs]
    groups += [f"mixed{number}" for _, number in pairs]
    splits = assign(labels, groups, seed=seed)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))


def test_result_does_not_depend_on_the_order_of_rows():
    labels, groups = rows({"a": [1, 2, 3, 1, 1, 4], "b": [2, 2, 2, 1]})
    expected = dict(zip(groups, assign(labels, groups), strict=True))
    order = list(range(len(labels)))
    random.Random(3).shuffle(order)
    shuffled = assign([labels[i] for i in order], [groups[i] for i in order])
    assert {groups[i]: split for i, split in zip(order, shuffled, strict=True)} == expected


def test_another_seed_gives_another_assignment():
    labels, groups = rows({"a": [1] * 40, "b": [1] * 40})
    assert assign(labels, groups, seed=1) == assign(labels, groups, seed=1)
    assert assign(labels, groups, seed=1) != assign(labels, groups, seed=2)


def test_single_images_hit_the_fractions():
    labels, groups = rows({"a": [1] * 100})
    assert Counter(assign(labels, groups)) == {"train": 70, "validation": 15, "test": 15}


def test_three_groups_give_one_to_each_split():
    labels, groups = rows({"a": [1, 1, 1]})
    assert sorted(assign(labels, groups)) == ["test", "train", "validation"]


def test_too_few_groups_is_the_users_mistake():
    labels, groups = rows({"a": [1] * 9, "pituitary": [5, 4]})
    with pytest.raises(UserError, match=r"class pituitary has 2 groups.*3 splits need at least 3"):
        assign(labels, groups)


def test_official_test_stays_and_its_twins_are_excluded():
    labels, groups = rows({"a": [1] * 10})
    official = ["train"] * 8 + ["test"] * 2
    splits = assign([*labels, "a"], [*groups, groups[8]], [*official, "train"])
    assert splits[8:] == ["test", "test", "excluded"]
    assert Counter(splits[:8]) == {"train": 7, "validation": 1}


def test_all_three_official_splits_stay_and_precedence_is_test_validation_train():
    groups = ["g1", "g2", "g3", "g1", "g2", "g1"]
    official = ["train", "train", "train", "validation", "validation", "test"]
    splits = assign(["a"] * 6, groups, official)
    assert splits == ["excluded", "excluded", "train", "excluded", "validation", "test"]


def test_official_validation_only_leaves_a_test_split_to_draw():
    labels, groups = rows({"a": [1] * 12})
    splits = assign(labels, groups, ["train"] * 10 + ["validation"] * 2)
    assert splits[10:] == ["validation"] * 2
    assert Counter(splits[:10]) == {"train": 8, "test": 2}


def test_only_an_official_train_folder_is_split_in_three():
    labels, groups = rows({"a": [1] * 20})
    assert set(assign(labels, groups, ["train"] * 20)) == {"train", "validation", "test"}


def test_class_missing_in_an_official_split():
    labels, groups = rows({"a": [1] * 6, "b": [1] * 6})
    official = ["train"] * 4 + ["test"] * 2 + ["train"] * 6
    with pytest.raises(UserError, match="class b has no image in the test split"):
        assign(labels, groups, official)


@pytest.mark.parametrize(("validation", "test"), [(0, 0.2), (0.5, 0.5), (0.2, -0.1)])
def test_impossible_fractions(validation, test):
    with pytest.raises(UserError, match="split fractions"):
        check_fractions({"train": 1 - validation - test, "validation": validation, "test": test})


def test_weights_need_not_add_up_to_one():
    labels, groups = rows({"a": [1] * 10})
    drawn = stratify(labels, groups, {"train": 4, "validation": 1}, 0)
    assert Counter(drawn.values()) == {"train": 8, "validation": 2}


official_splits = st.sampled_from([None, "train", "validation", "test"])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(1, 9), min_size=8, max_size=25), min_size=1
    ),
    st.lists(official_splits, min_size=200, max_size=200),
    st.integers(2, 4),
    st.sampled_from([0, 0.2]),
    st.integers(0, 1000),
)
def test_no_group_crosses_folds_or_splits(by_label, drawn, folds, test, seed):
    labels, groups = rows(by_label)
    official = (drawn * 4)[: len(labels)]
    try:
        splits, numbers = assign_folds(labels, groups, official, test, folds, seed)
    except UserError:
        return  # the official test took a class's last groups
    used = [(g, s, n) for g, s, n in zip(groups, splits, numbers, strict=True) if s != "excluded"]
    assert len({(g, s == "test", n) for g, s, n in used}) == len({g for g, _, _ in used})
    for own, split, number in zip(official, splits, numbers, strict=True):
        assert (own == "test") == (split == "test") or "test" not in official
        assert (number is None) == (split in ("test", "excluded"))
        assert number is None or (split == "validation") == (number == 0)
    present = {(label, n) for label, n in zip(labels, numbers, strict=True) if n is not None}
    assert len(present) == folds * len(set(labels))


def test_folds_of_single_images_are_equal_and_stratified():
    labels, groups = rows({"a": [1] * 50, "b": [1] * 100})
    splits, numbers = assign_folds(labels, groups, [None] * 150, 0, 5, 0)
    assert set(Counter(zip(labels, numbers, strict=True)).values()) == {10, 20}
    assert Counter(splits) == {"train": 120, "validation": 30}


def test_folds_do_not_depend_on_the_order_of_rows():
    labels, groups = rows({"a": [1, 2, 3, 1, 1, 4, 2], "b": [2, 2, 2, 1, 1, 1]})
    _, numbers = assign_folds(labels, groups, [None] * len(labels), 0.2, 3, 1)
    expected = dict(zip(groups, numbers, strict=True))
    order = list(range(len(labels)))
    random.Random(3).shuffle(order)
    _, shuffled = assign_folds(
        [labels[i] for i in order], [groups[i] for i in order], [None] * len(labels), 0.2, 3, 1
    )
    assert {groups[i]: number for i, number in zip(order, shuffled, strict=True)} == expected


def test_an_official_test_stays_out_of_the_folds():
    labels, groups = rows({"a": [1] * 10})
    official = ["train"] * 7 + ["validation"] + ["test"] * 2
    splits, numbers = assign_folds(
        [*labels, "a"], [*groups, groups[8]], [*official, "train"], 0.15, 2, 0
    )
    assert splits[8:] == ["test", "test", "excluded"]
    assert numbers[8:] == [None] * 3
    assert Counter(numbers[:8]) == {0: 4, 1: 4}


@pytest.mark.parametrize(
    ("test", "folds", "message"),
    [(-0.1, 5, "share of test"), (1, 5, "share of test"), (0.1, 1, "1 fold: cross-validation")],
)
def test_impossible_folds_are_the_users_mistake(test, folds, message):
    labels, groups = rows({"a": [1] * 20})
    with pytest.raises(UserError, match=message):
        assign_folds(labels, groups, [None] * 20, test, folds, 0)


def test_a_class_of_fewer_groups_than_folds():
    labels, groups = rows({"a": [1] * 20, "b": [4, 4]})
    with pytest.raises(UserError, match="class b has 2 groups"):
        assign_folds(labels, groups, [None] * len(labels), 0, 3, 0)


def test_a_patient_in_two_official_splits_is_reported():
    official = ["train", "test", "train", None, "test"]
    check_patients("here", ["p1", "p2", "p1", "p2", None], official)
    with pytest.raises(UserError, match=r"here: 1 patient stands in .*1 in test and train"):
        check_patients("here", ["p1", "p2", "p2", "p3", None], official)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([None, 0, 1, 2]))))
def test_no_group_stands_in_two_of_a_sources_own_folds(pairs):
    groups, folds = [group for group, _ in pairs], [fold for _, fold in pairs]
    kept = untorn_folds(groups, folds)
    placed = {(g, f) for g, f in zip(groups, kept, strict=True) if f is not None}
    assert len(placed) == len({group for group, _ in placed})
    assert {g for g, _ in placed} == {g for g, f in pairs if f is not None}
    assert all(new in (None, old) for old, new in zip(folds, kept, strict=True))
