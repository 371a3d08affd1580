from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from btray.core.images import decode
from btray.core.labels import CLASS_NAMES
from btray.data.duplicates import Measures, frame_pairs, near_pairs
from btray.data.measure import measure
from btray.data.sources import phantom
from btray.data.sources.phantom import draw_style, encode_png, phantom_patient, phantom_plan
from btray.data.sources.phantom_anatomy import SELLA
from btray.data.sources.phantom_tumours import PLANES

PATIENTS = 100


@cache
def slices():
    """Two slices of every patient, [2 * PATIENTS]."""
    return [one for index in range(PATIENTS) for one in phantom_patient(index, 11, 2)]


def of(label):
    return [one for one in slices() if one.label == label]


def area(one, index):
    """Square millimetres of the tumour."""
    return one.tumour.sum() * draw_style(index, 11).pixel ** 2


@pytest.mark.parametrize("images", [64, 65, 67, 100, 321, 2000])
def test_the_plan_adds_up_to_the_images(images):
    plan = phantom_plan(images)
    assert sum(count for _, count in plan) == images
    assert [patient for patient, _ in plan] == list(range(len(plan)))
    assert all(1 <= count <= 6 for _, count in plan)


def test_classes_are_balanced_in_every_prefix():
    plan = phantom_plan(2000)
    total = Counter()
    for patient, count in plan:
        total[CLASS_NAMES[patient % 4]] += count
        assert max(total.values()) - min(total[name] for name in CLASS_NAMES) <= 6
    assert set(total.values()) == {500}
    assert len(plan) >= 400


def test_a_patient_is_the_same_however_it_is_asked_for():
    first, again = phantom_patient(5, 3, 2), phantom_patient(5, 3, 4)
    for one, other in zip(first, again, strict=False):
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.label, one.sequence) == (other.label, other.sequence)


def test_seeds_and_patients_differ():
    images = [phantom_patient(index, seed, 1)[0].image for index, seed in ((1, 0), (1, 1), (5, 0))]
    assert len({image.tobytes() for image in images}) == 3


def test_the_patient_id_is_of_the_index_alone():
    names = {phantom_patient(2, seed, 1)[0].patient_id for seed in (0, 1)}
    assert names == {"phantom-0000002"}
    assert len({one.patient_id for one in slices()}) == PATIENTS


def test_images_are_uint8_slices_of_many_sizes():
    shapes = {one.image.shape for one in slices()}
    assert all(one.image.dtype == np.uint8 for one in slices())
    assert all(100 <= side <= 256 for shape in shapes for side in shape)
    assert any(height != width for height, width in shapes)
    assert len(shapes) > 12


def test_all_classes_planes_and_sequences_occur():
    assert {one.sequence for one in slices()} == set(phantom.SEQUENCES)
    for label in CLASS_NAMES:
        assert {one.plane for one in of(label)} == set(PLANES)
        assert len({one.sequence for one in of(label)}) >= 3


def test_the_style_does_not_know_the_label(monkeypatch):
    before = [phantom._draw_patient(index, 4) for index in range(8)]
    monkeypatch.setattr(phantom, "CLASS_NAMES", CLASS_NAMES[::-1])
    after = [phantom._draw_patient(index, 4) for index in range(8)]
    for one, other in zip(before, after, strict=True):
        assert one.label != other.label
        assert repr(one.style) == repr(other.style)
        assert repr(one.head) == repr(other.head)


@pytest.mark.parametrize("index", [0, 1, 3, 4, 5, 7])
def test_a_tumour_changes_the_pixels_where_it_is(index):
    patient = phantom._draw_patient(index, 11)
    ill = phantom._render(patient, index, 11, 0)
    well = phantom._render(replace(patient, label="notumor"), index, 11, 0)
    change = np.abs(ill.image.astype(int) - well.image)
    outside = ill.skull > 26
    assert not well.tumour.any()
    assert change[ill.tumour].mean() > 12
    assert not change[outside].any()


def test_every_tumour_can_be_seen():
    for number, one in enumerate(slices()):
        if one.label == "notumor":
            assert not one.tumour.any()
        else:
            assert area(one, number // 2) > 90


def test_a_meningioma_is_broad_against_the_inner_skull():
    for one in of("meningioma"):
        depth = -one.skull[one.tumour]
        assert depth.min() < 2
        # Its widest contact is no point: a good part of it lies right under the skull.
        assert (depth < 4).sum() > 0.3 * np.sqrt(len(depth))


def test_a_glioma_lies_inside_the_brain():
    shallow = [np.mean(one.skull[one.tumour] > -4) for one in of("glioma")]
    assert np.max(shallow) < 0.15
    assert np.median(shallow) == 0


def test_a_pituitary_tumour_lies_at_the_sella_on_the_midline():
    for one in of("pituitary"):
        x, y = (axis[one.tumour].mean() for axis in (one.points.x, one.points.y))
        assert abs(x) < 14
        assert abs(y - SELLA[1]) < 16
        assert abs(one.points.z[one.tumour].min() - SELLA[2]) < 26


def test_brightness_alone_does_not_tell_the_class():
    counts = [np.histogram(one.image, 64, (0, 256))[0] / one.image.size for one in slices()]
    features, labels = np.stack(counts), np.array([one.label for one in slices()])
    train = np.arange(len(labels)) < 0.7 * len(labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    model.fit(features[train], labels[train])
    assert model.score(features[~train], labels[~train]) < 0.6


def test_different_patients_are_not_near_duplicates():
    found = [measure(encode_png(one.image)) for one in slices()]
    measures = Measures(
        [one.pixel_sha256 for one in found],
        np.stack([np.frombuffer(one.thumbnail, np.uint8).reshape(64, 64) for one in found]),
        np.stack([np.frombuffer(one.frame, np.uint8).reshape(32, 32) for one in found]),
    )
    pairs = np.concatenate([near_pairs(measures), frame_pairs(measures)])
    crossing = [
        (a, b) for a, b in pairs.tolist() if slices()[a].patient_id != slices()[b].patient_id
    ]
    assert len(crossing) <= 1


def test_png_keeps_every_pixel():
    image = slices()[0].image
    np.testing.assert_array_equal(decode(encode_png(image)), image)
