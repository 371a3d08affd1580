import numpy as np
import pyarrow as pa
import pytest

from btray.core.bundle import save_bundle
from btray.core.seen import Seen
from btray.data.seen import seen_in
from btray.errors import UserError
from btray.evaluate import leakage
from btray.evaluate.leakage import check_leakage, hash_images


@pytest.fixture
def here(monkeypatch):
    """Hash in this process, without Ray."""

    def hashed(dataset, split):
        return [hash_images(dataset.table(["sha256", "pixel_sha256", "image"], split))]

    monkeypatch.setattr(leakage, "_hashed", hashed)
    monkeypatch.setattr(leakage.cluster, "connect", lambda: None)


@pytest.fixture
def elsewhere(make_bundle, tmp_path):
    """A bundle of another data set that saw certain images."""

    def make(seen):
        made = make_bundle(tmp_path / "made")
        return save_bundle(tmp_path / "elsewhere", made.weights, made.card, seen=seen)

    return make


def some(dataset, split, count):
    rows = dataset.table(["pixel_sha256", "phash"], split).slice(0, count).to_pydict()
    return Seen.of(rows["pixel_sha256"], rows["phash"])


def test_images_that_were_trained_on_are_refused(here, elsewhere, dataset):
    bundle = elsewhere(some(dataset, "test", 3))
    with pytest.raises(UserError, match=r"3 of \d+ images of test have a twin .* --allow-leak"):
        check_leakage(bundle, dataset, "test")
    found = check_leakage(bundle, dataset, "test", allow=True)
    assert (found["exact"], found["near"], found["allowed"]) == (3, 0, True)
    assert found["twins"] == dataset.table(["sha256"], "test")["sha256"].to_pylist()[:3]
    assert found["rows"] == dataset.count("test")


def test_an_image_known_by_its_look_alone(here, elsewhere, dataset):
    rows = dataset.table(["phash"], "test").slice(0, 2)["phash"].to_pylist()
    bundle = elsewhere(Seen.of([], rows))
    found = check_leakage(bundle, dataset, "test", allow=True)
    assert (found["exact"], found["near"]) == (0, 2)


def test_a_data_set_of_other_images_is_clean(here, elsewhere, dataset):
    found = check_leakage(elsewhere(some(dataset, "train", 50)), dataset, "test")
    assert (found["exact"], found["twins"], found["near_checked"]) == (0, [], True)


def test_the_own_data_set_is_looked_at_by_pixels(here, bundle, dataset, tmp_path):
    own = save_bundle(tmp_path / "own", bundle.weights, bundle.card, seen=seen_in(dataset))
    found = check_leakage(own, dataset, "test")
    assert (found["exact"], found["near"], found["near_checked"]) == (0, 0, False)
    assert check_leakage(own, dataset, "validation") is None
    torn = save_bundle(
        tmp_path / "torn", bundle.weights, bundle.card, seen=some(dataset, "test", 1)
    )
    with pytest.raises(UserError, match="1 of"):
        check_leakage(torn, dataset, "test")


def test_a_bundle_without_hashes_cannot_tell(tiny_bundle, dataset):
    assert tiny_bundle.seen is None
    assert check_leakage(tiny_bundle, dataset, "test") is None


def test_a_damaged_row_is_named():
    rows = pa.table({"sha256": ["abc"], "pixel_sha256": ["00"], "image": [b"no image"]})
    with pytest.raises(UserError, match="row with sha256 abc: "):
        hash_images(rows)


def test_what_a_data_set_says_its_bundles_have_seen(dataset):
    rows = dataset.table(["split", "pixel_sha256"]).to_pydict()
    seen = seen_in(dataset)
    nothing = np.zeros((len(rows["split"]), 8), dtype=np.int64)
    known = seen.twins(rows["pixel_sha256"], nothing).exact
    assert known.tolist() == [split in ("train", "validation") for split in rows["split"]]


@pytest.mark.cluster
def test_on_a_cluster(cluster, elsewhere, dataset):
    bundle = elsewhere(some(dataset, "test", 2))
    found = check_leakage(bundle, dataset, "test", allow=True)
    assert (found["exact"], found["rows"]) == (2, dataset.count("test"))
