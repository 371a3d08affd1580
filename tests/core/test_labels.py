import pytest
from hypothesis import given
from hypothesis import strategies as st

from btray.core.labels import CLASS_NAMES, canonical_label


def test_the_index_order_of_the_classes_is_fixed():
    assert CLASS_NAMES == ("glioma", "meningioma", "notumor", "pituitary")


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_class_name_stands_for_itself(name):
    assert canonical_label(name) == name


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("glioma_tumor", "glioma"),
        ("Glioma-Tumour", "glioma"),
        ("gliomas", "glioma"),
        ("meningioma tumor", "meningioma"),
        ("MENINGIOMA", "meningioma"),
        ("Meningiomas", "meningioma"),
        ("no_tumor", "notumor"),
        ("No Tumour", "notumor"),
        ("no", "notumor"),
        ("none", "notumor"),
        ("Normal", "notumor"),
        ("healthy", "notumor"),
        ("pituitary_tumor", "pituitary"),
        ("Pituitary Adenoma", "pituitary"),
    ],
)
def test_the_names_of_public_data_sets(folder, label):
    assert canonical_label(folder) == label


@pytest.mark.parametrize("folder", ["", "tumor", "tumour", "yes", "glio", "metastasis", "__", "脑"])
def test_other_names_stand_for_no_class(folder):
    assert canonical_label(folder) is None


@given(st.sampled_from(CLASS_NAMES), st.lists(st.sampled_from(" _-."), max_size=4))
def test_case_and_separators_are_ignored(name, separators):
    middle = "".join(separators).join((name[:3].upper(), name[3:]))
    assert canonical_label(f"_{middle}-") == name


@given(st.text())
def test_any_name_is_a_class_or_none(name):
    assert canonical_label(name) in (*CLASS_NAMES, None)
