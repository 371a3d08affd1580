import hashlib
import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from btray.data import duplicates
from btray.data.duplicates import Measures, count_conflicts, count_groups, find_duplicates


def measures(images):
    return Measures(
        [hashlib.sha256(str(i.shape).encode() + i.tobytes()).hexdigest() for i in images],
        np.array([int(str(imagehash.phash(Image.fromarray(i))), 16) for i in images], np.uint64),
        np.stack([np.asarray(Image.fromarray(i).resize((32, 32), 4)) for i in images]),
    )


def groups(images, patients=None):
    return find_duplicates(measures(images), patients or [None] * len(images))


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


@pytest.mark.parametrize("change", [lambda i: jpeg(i, 50), brighter, resized])
def test_changed_copies_are_near_but_not_exact(draw, change):
    for seed in range(5):
        found = groups([draw(seed), change(draw(seed))])
        assert found.exact[0] != found.exact[1]
        assert found.near[0] == found.near[1]


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


def test_strips_find_the_pairs_that_one_strip_finds(draw, monkeypatch):
    images = [draw(seed % 7) for seed in range(30)]
    whole = groups(images).near
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 40)
    assert (groups(images).near == whole).all()


def test_conflicts_are_groups_with_two_labels():
    exact = np.array([0, 0, 1, 1, 2])
    assert count_conflicts(exact, ["a", "b", "a", "a", "b"]) == 1


def test_no_images():
    empty = Measures([], np.zeros(0, np.uint64), np.zeros((0, 32, 32), np.uint8))
    assert find_duplicates(empty, []).group_id == []
