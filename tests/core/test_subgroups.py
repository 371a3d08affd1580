import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from btray.core.intervals import ratio_intervals
from btray.core.subgroups import age_band, columns_of, field_strength_band, size_band, subgroups

NAMES = ("glioma", "meningioma", "notumor", "pituitary")


def answers(labels, right):
    """Probabilities of the true class where `right`, else of the next one."""
    return np.eye(4)[np.where(right, labels, (labels + 1) % 4)] * 0.9 + 0.025


def split(accuracies, rows=200):
    """A split of one attribute: values `v0` …, of the accuracies given."""
    right = np.concatenate([np.arange(rows) < share * rows for share in accuracies])
    labels = np.arange(len(right)) % 4
    values = [f"v{k}" for k in range(len(accuracies)) for _ in range(rows)]
    return labels, answers(labels, right), values


def test_the_worst_comes_first_and_is_beyond_noise():
    labels, probabilities, values = split([0.95, 0.6, 0.9])
    found = subgroups(labels, probabilities, {"plane": values}, np.arange(600), NAMES)
    assert [one["value"] for one in found] == ["v1", "v2", "v0"]
    assert [one["accuracy"] for one in found] == pytest.approx([0.6, 0.9, 0.95])
    overall = np.mean([0.95, 0.6, 0.9])
    assert [one["gap"] for one in found] == pytest.approx(
        [0.6 - overall, 0.9 - overall, 0.95 - overall]
    )
    assert found[0]["beyond_noise"]
    low, high = found[0]["accuracy_interval"]
    assert low < 0.6 < high < overall


def test_scores_by_scikit_learn():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 4, 300), rng.random((300, 4))
    sex = ["F" if value else "M" for value in rng.random(300) < 0.3]
    groups = rng.integers(0, 90, 300)
    found = subgroups(labels, probabilities, {"sex": sex}, groups, NAMES, seed=3)
    for one in found:
        rows = np.array(sex) == one["value"]
        predicted = probabilities[rows].argmax(axis=1)
        right = predicted == labels[rows]
        assert one["rows"] == rows.sum()
        assert one["groups"] == len(set(groups[rows].tolist()))
        assert list(one["classes"].values()) == np.bincount(labels[rows], minlength=4).tolist()
        assert one["accuracy"] == right.mean()
        assert one["macro_f1"] == pytest.approx(f1_score(labels[rows], predicted, average="macro"))
        whole = np.ones((len(right), 1), dtype=bool)
        (interval,) = ratio_intervals(right[:, None], whole, groups[rows], seed=3)
        assert one["accuracy_interval"] == interval


def test_no_gap_is_found_where_there_is_none():
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 4
    probabilities = answers(labels, rng.random(400) < 0.8)
    columns = {f"a{k}": rng.choice(["x", "y"], 400).tolist() for k in range(10)}
    found = subgroups(labels, probabilities, columns, np.arange(400), NAMES)
    assert len(found) == 20
    assert sum(one["beyond_noise"] for one in found) <= 3


def test_dependent_rows_make_no_evidence():
    labels, probabilities, values = split([0.9, 0.75], rows=200)
    alone = subgroups(labels, probabilities, {"plane": values}, np.arange(400), NAMES)
    grouped = subgroups(labels, probabilities, {"plane": values}, np.arange(400) // 50, NAMES)
    assert [one["beyond_noise"] for one in alone] == [True, True]
    assert [one["beyond_noise"] for one in grouped] == [False, False]
    assert [one["groups"] for one in grouped] == [4, 4]


def test_too_few_rows_are_listed_last_without_scores():
    labels, probabilities, _ = split([0.9], rows=100)
    values = ["a"] * 50 + ["b"] * 19 + ["c"] * 11 + ["d"] * 20
    found = subgroups(labels, probabilities, {"vendor": values}, np.arange(100), NAMES)
    assert [one["value"] for one in found[2:]] == ["b", "c"]
    for one in found[2:]:
        scores = ("accuracy", "macro_f1", "accuracy_interval", "gap", "beyond_noise")
        assert [one[key] for key in scores] == [None] * 5
        assert one["rows"] == one["groups"] < 20
    assert all(one["accuracy"] is not None for one in found[:2])


def test_least_is_the_caller_s():
    labels, probabilities, values = split([0.5], rows=10)
    (one,) = subgroups(labels, probabilities, {"a": values}, np.arange(10), NAMES, least=10)
    assert one["accuracy"] == 0.5


def test_unknown_values_are_a_subgroup_and_unknown_attributes_are_none():
    labels, probabilities, _ = split([0.9], rows=100)
    columns = {"plane": ["axial"] * 60 + [None] * 40, "sex": [None] * 100}
    found = subgroups(labels, probabilities, columns, np.arange(100), NAMES)
    assert {(one["attribute"], one["value"]) for one in found} == {
        ("plane", "axial"),
        ("plane", None),
    }


@pytest.mark.parametrize("right", [True, False])
def test_rows_all_right_or_all_wrong_are_no_certainty(right):
    labels = np.arange(100) % 4
    hits = np.array([right] * 24 + [True] * 38 + [False] * 38)
    groups = np.arange(100)
    groups[:24] //= 2
    values = ["x"] * 24 + ["y"] * 76
    found = subgroups(labels, answers(labels, hits), {"a": values}, groups, NAMES)
    (one,) = [one for one in found if one["value"] == "x"]
    ends = binomtest(12 if right else 0, 12).proportion_ci(0.95, method="exact")
    assert one["accuracy_interval"] == pytest.approx([ends.low, ends.high])


def test_few_rows_all_right_are_not_beyond_noise():
    labels, probabilities, _ = split([0.96], rows=500)
    values = ["x"] * 25 + ["y"] * 475  # the first rows are right
    found = subgroups(labels, probabilities, {"a": values}, np.arange(500), NAMES)
    assert [one["beyond_noise"] for one in found if one["value"] == "x"] == [False]


def test_one_group_has_no_interval():
    labels, probabilities, values = split([0.5, 0.9], rows=40)
    groups = np.array([0] * 40 + list(range(1, 41)))
    found = subgroups(labels, probabilities, {"a": values}, groups, NAMES)
    assert (found[0]["accuracy_interval"], found[0]["beyond_noise"]) == (None, False)


def test_f1_of_a_subgroup_of_one_class_is_of_that_class():
    labels = np.full(40, 2)
    hits = np.arange(40) < 30
    (one,) = subgroups(labels, answers(labels, hits), {"a": ["x"] * 40}, np.arange(40), NAMES)
    assert one["macro_f1"] == pytest.approx(2 * 30 / (30 + 40))
    assert one["classes"] == {"glioma": 0, "meningioma": 0, "notumor": 40, "pituitary": 0}


def test_names_of_groups_may_be_text():
    labels, probabilities, values = split([0.8, 0.9], rows=50)
    names = [f"g{row // 2}" for row in range(100)]
    found = subgroups(labels, probabilities, {"a": values}, names, NAMES)
    assert [one["groups"] for one in found] == [25, 25]


@pytest.mark.parametrize(
    ("age", "expected"),
    [(None, None), (0, "0-17"), (17, "0-17"), (18, "18-39"), (79, "60-79"), (80, "80 and more")],
)
def test_age_band(age, expected):
    assert age_band(age) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((16, 100), "0-127 px"),
        ((224, 224), "128-255 px"),
        ((100, 256), "256-511 px"),
        ((512, 512), "512-1023 px"),
        ((2000, 1024), "1024 and more px"),
    ],
)
def test_size_band_is_of_the_longer_side(size, expected):
    assert size_band(*size) == size_band(*reversed(size)) == expected


@pytest.mark.parametrize(
    ("tesla", "expected"),
    [(None, None), (0.35, "below 1 T"), (1.494, "1.5 T"), (2.894, "3 T"), (3.0, "3 T"), (7, "7 T")],
)
def test_field_strength_band(tesla, expected):
    assert field_strength_band(tesla) == expected


def table(sources, **columns):
    """A data set's columns, all unknown but those given; every row is a group."""
    unknown = ("plane", "sequence", "field_strength", "vendor", "sex", "age", "patient_id")
    rows = len(sources)
    return {
        "source": sources,
        "height": [224] * rows,
        "width": [200] * rows,
        "mode": ["L"] * rows,
        "group_id": [f"g{row}" for row in range(rows)],
        **{name: [None] * rows for name in unknown},
        **columns,
    }


def collections(sources, **columns):
    return columns_of(table(sources, **columns))["collection"]


def files(*folders, each=10):
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(each)]


def test_columns_of_a_data_set():
    known = {
        "plane": ["axial", None],
        "field_strength": [3.0, None],
        "vendor": ["ge", "other"],
        "sex": ["F", "O"],
        "age": [44, None],
        "mode": ["L", "RGB"],
    }
    assert columns_of(table(["a.png", "b.png"], **known)) == {
        "plane": ["axial", None],
        "sequence": [None, None],
        "vendor": ["ge", "other"],
        "field strength": ["3 T", None],
        "collection": [None, None],
        "size": ["128-255 px"] * 2,
        "colour mode": ["L", "RGB"],
        "sex": ["F", "O"],
        "age": ["40-59", None],
    }


@pytest.mark.parametrize(
    "folders",
    [
        ("figshare", "br35h"),
        ("figshare/glioma", "br35h/no"),
        ("Training/figshare", "Testing/br35h"),
        ("/data/mri/figshare", "/data/mri/br35h"),
        ("s3://bucket/figshare/1", "s3://bucket/br35h/2"),
    ],
)
def test_collections_are_the_first_folders_that_differ(folders):
    assert collections(files(*folders)) == ["figshare"] * 10 + ["br35h"] * 10


@pytest.mark.parametrize(
    "folders",
    [
        ("figshare",),
        ("glioma", "meningioma_tumor", "no_tumor"),
        ("Training/glioma", "Testing/glioma"),
        ("train", "valid", "test"),
        ("Training/glioma/a", "Training/pituitary/b"),
        tuple(f"study{number}" for number in range(21)),
    ],
)
def test_classes_splits_one_folder_or_many_are_no_collections(folders):
    assert collections(files(*folders)) == [None] * 10 * len(folders)


def test_files_without_a_folder_are_of_no_collection():
    assert collections([f"{k}.jpg" for k in range(10)]) == [None] * 10
    assert collections([]) == []


def test_class_folders_beside_collections_are_of_none():
    found = collections(files("figshare", "br35h", "glioma"))
    assert found == ["figshare"] * 10 + ["br35h"] * 10 + [None] * 10


def test_the_folder_of_a_patient_is_not_named():
    patients = ["p"] * 30 + [f"q{row}" for row in range(30)] + [f"r{row}" for row in range(30)]
    sources = files("Doe^Jane", "north", "south", each=30)
    found = collections(sources, patient_id=patients)
    assert found == [None] * 30 + ["north"] * 30 + ["south"] * 30


def test_folders_of_alike_images_are_not_named():
    sources = files("one", "two", each=30)
    assert collections(sources, group_id=[str(row // 5) for row in range(60)]) == [None] * 60


def test_classes_may_be_others():
    sources = files("cyst", "abscess")
    found = columns_of(table(sources), class_names=("cyst", "abscess"))["collection"]
    assert found == [None] * 20
