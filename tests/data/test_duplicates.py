import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from btray.data import duplicates
from btray.data.duplicates import (
    Measures,
    count_conflicts,
    count_groups,
    find_duplicates,
    people,
)
from btray.data.head import frame, thumbnail


def measures(images):
    return Measures(
        [hashlib.sha256(str(i.shape).encode() + i.tobytes()).hexdigest() for i in images],
        np.stack([thumbnail(i) for i in images]),
        np.stack([frame(i) for i in images]),
    )


def groups(images, patients=None):
    return find_duplicates(measures(images), patients or [None] * len(images))


@pytest.fixture
def head(draw):
    """A picture inside an ellipse on black, wider than the picture by a border."""

    def make(seed, size=120):
        down, across = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
        inside = (down / 0.9) ** 2 + (across / 0.75) ** 2 < 1
        return np.where(inside, 60 + draw(seed, size) // 2, 0).astype(np.uint8)

    return make


def jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def brighter(pixels):
    return np.clip(pixels.astype(float) * 1.1 + 5, 0, 255).astype(np.uint8)


def resized(pixels):
    return np.asarray(Image.fromarray(pixels).resize((40, 40), Image.Resampling.BILINEAR))


def test_identical_images_are_exact_and_near(draw):
    found = groups([draw(1), draw(2), draw(1)])
    assert found.exact.tolist() == [0, 1, 0]
    assert found.near[0] == found.near[2] != found.near[1]


def darker(pixels):
    return np.round(255 * (pixels / 255) ** 1.35 * 0.8).astype(np.uint8)


def stretched(pixels):
    return np.asarray(Image.fromarray(pixels).resize((150, 90), Image.Resampling.BICUBIC))


def letterboxed(pixels):
    return np.pad(pixels, ((10, 30), (25, 5)))


def cropped(pixels):
    height, width = pixels.shape
    return pixels[: round(0.9 * height), round(0.08 * width) :]


def rotated(pixels):
    return np.asarray(Image.fromarray(pixels).rotate(7, Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "change", [lambda i: jpeg(i, 40), brighter, darker, resized, stretched, letterboxed]
)
def test_changed_copies_are_near_but_not_exact(head, change):
    for seed in range(5):
        found = groups([head(seed), change(head(seed))])
        assert found.exact[0] != found.exact[1]
        assert found.near[0] == found.near[1]


@pytest.mark.parametrize("quarter_turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_all_turns_and_flips_are_near(head, quarter_turns, mirrored):
    for seed in range(3):
        copy = np.rot90(head(seed)[:, ::-1] if mirrored else head(seed), quarter_turns)
        found = groups([head(seed), np.ascontiguousarray(copy)])
        assert found.near[0] == found.near[1]


@pytest.mark.parametrize("change", [cropped, rotated, lambda i: jpeg(cropped(i)[:, ::-1], 60)])
def test_cropped_and_rotated_copies_are_near(head, change):
    images = [image for seed in range(8) for image in (head(seed), change(head(seed)))]
    near = groups(images).near
    assert sum(near[0::2] == near[1::2]) >= 7
    assert len(set(near[0::2])) == 8


def test_different_images_are_not_grouped(draw):
    found = groups([draw(seed) for seed in range(60)])
    assert count_groups(found.near) == {"groups": 0, "images": 0}
    assert len(set(found.group_id)) == 60


def test_flat_images_are_only_equal_when_identical():
    black, grey = np.zeros((32, 32), np.uint8), np.full((32, 32), 90, np.uint8)
    assert count_groups(groups([black, grey, black]).near) == {"groups": 1, "images": 2}


def test_a_patient_is_one_group_though_not_near(draw):
    found = groups([draw(1), draw(2), draw(3), draw(4)], ["p1", None, "p1", None])
    assert found.group_id[0] == found.group_id[2]
    assert len(set(found.group_id)) == 3
    assert count_groups(found.near)["groups"] == 0


def test_groups_chain_over_patients_and_copies(draw):
    found = groups([draw(1), draw(2), draw(2), draw(3)], ["a", "a", "b", "b"])
    assert len(set(found.group_id)) == 1


def test_group_names_do_not_depend_on_the_order(draw):
    images = [draw(1), draw(2), jpeg(draw(1), 60), draw(3)]
    forward, backward = groups(images).group_id, groups(images[::-1]).group_id
    assert forward == backward[::-1]
    assert forward[0] == min(measures(images).pixel_sha256[i] for i in (0, 2))[:16]


def test_pairs_over_many_rounds_are_those_of_one(draw, monkeypatch):
    images = [draw(seed % 7) for seed in range(30)] + [jpeg(draw(seed), 50) for seed in range(7)]
    whole = groups(images).near
    monkeypatch.setattr(duplicates, "_PAIRS_A_ROUND", 3)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 2)
    assert (groups(images).near == whole).all()


def test_the_groups_of_many_images_do_not_depend_on_their_order(draw):
    images = [draw(seed) for seed in range(60)] + [jpeg(draw(seed), 40) for seed in range(30)]
    order = np.random.default_rng(0).permutation(len(images))
    names = np.array(groups(images).group_id)
    assert groups([images[row] for row in order]).group_id == names[order].tolist()


def test_conflicts_are_groups_with_two_labels():
    exact = np.array([0, 0, 1, 1, 2])
    assert count_conflicts(exact, ["a", "b", "a", "a", "b"]) == 1


def test_no_images():
    empty = Measures([], *np.zeros((2, 0, 64, 64), np.uint8))
    assert find_duplicates(empty, []).group_id == []


def test_a_study_stays_together_whatever_its_patient_ids():
    patients = ["p", None, "q", None, None, "r"]
    studies = ["s", "s", "s", "t", None, None]
    assert people(patients, studies) == ["p", "p", "p", "t", None, "r"]
