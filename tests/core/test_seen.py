import subprocess
import sys

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save
from scipy.ndimage import gaussian_filter

from btray.core.images import decode
from btray.core.seen import Seen, phash, phash_variants
from btray.data.measure import pixel_sha256
from btray.errors import UserError


def picture(seed, height=96, width=96):
    """A smooth picture, as slices are."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = gaussian_filter(noise, height / 12)
    return np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def turned(image):
    """The picture in all ways it can be mirrored and turned, in the order of the variants."""
    return [
        np.ascontiguousarray(way[down, across])
        for way in (image, image.T)
        for down in (slice(None), slice(None, None, -1))
        for across in (slice(None), slice(None, None, -1))
    ]


def seen_of(pictures):
    return Seen.of([pixel_sha256(image) for image in pictures], [phash(i) for i in pictures])


def twins_of(seen, pictures):
    variants = np.stack([phash_variants(image) for image in pictures])
    return seen.twins([pixel_sha256(image) for image in pictures], variants)


def number(hexadecimal):
    return int.from_bytes(bytes.fromhex(hexadecimal), signed=True)


@given(st.integers(0, 10**6), st.integers(16, 150), st.integers(16, 150))
def test_the_first_variant_is_the_hash_that_a_data_set_holds(seed, height, width):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width), dtype=np.uint8)
    assert phash(image) == str(imagehash.phash(Image.fromarray(image)))
    assert phash_variants(image)[0] == number(phash(image))


def test_variants_are_the_hashes_of_the_image_mirrored_and_turned():
    # At 32 pixels imagehash does not resize, and there is no rounding to differ by.
    for seed in range(20):
        image = picture(seed, 32, 32)
        expected = [number(phash(way)) for way in turned(image)]
        assert phash_variants(image).tolist() == expected
        assert len(set(expected)) == 8


def test_variants_are_int64_and_leave_the_image_alone():
    image = picture(0)
    before = image.copy()
    variants = phash_variants(image)
    assert (variants.dtype, variants.shape) == (np.int64, (8,))
    assert (image == before).all()


def test_the_very_pixels_are_exact_and_near():
    pictures = [picture(seed) for seed in range(10)]
    twins = twins_of(seen_of(pictures[:5]), pictures)
    assert twins.exact.tolist() == [True] * 5 + [False] * 5
    assert twins.near.tolist() == [True] * 5 + [False] * 5


@pytest.mark.parametrize("way", range(1, 8))
def test_mirrored_and_turned_copies_are_near_but_not_exact(way):
    pictures = [picture(seed, 32, 32) for seed in range(5)]
    twins = twins_of(seen_of(pictures), [turned(image)[way] for image in pictures])
    assert twins.near.all()
    assert not twins.exact.any()
    assert twins.rows.all()


def test_a_pixel_twin_is_found_whatever_its_perceptual_hash():
    one, other = picture(0), picture(1)
    seen = Seen.of([pixel_sha256(one)], [phash(other)])
    twins = twins_of(seen, [one])
    assert twins.exact.tolist() == [True]
    assert twins.near.tolist() == [False]
    assert twins.rows.tolist() == [True]


def test_other_pictures_are_no_twins():
    seen = seen_of([picture(seed) for seed in range(60)])
    assert not twins_of(seen, [picture(seed) for seed in range(60, 120)]).rows.any()


def test_hashes_two_bits_apart_do_not_meet():
    hash_ = number("91971ed87a24795c")
    variants = np.full((1, 8), hash_ ^ 0b11, dtype=np.int64)
    seen = Seen.of(["0" * 64], ["91971ed87a24795c"])
    assert not seen.twins(["1" * 64], variants).near.any()
    variants[0, 5] = hash_
    assert seen.twins(["1" * 64], variants).near.all()


def nearly_constant(grey):
    image = np.full((64, 64), grey, dtype=np.uint8)
    image[5, 7] ^= 1
    return image


@pytest.mark.parametrize("grey", [0, 1, 127, 255])
def test_blank_images_match_by_their_pixels_only(grey):
    blank = np.full((64, 64), grey, dtype=np.uint8)
    twins = twins_of(seen_of([blank]), [blank, blank[:50], nearly_constant(grey)])
    assert twins.exact.tolist() == [True, False, False]
    assert not twins.near.any()


def test_order_and_repetition_leave_no_trace():
    pictures = [picture(seed) for seed in range(6)]
    one, other = seen_of(pictures), seen_of([*reversed(pictures), pictures[3]])
    assert (one.pixels == other.pixels).all()
    assert (one.phashes == other.phashes).all()
    assert len(other.pixels) == len(other.phashes) == 6


def hashes_of(rows):
    """Random hashes of rows, the perceptual ones with half of their bits set."""
    rng = np.random.default_rng(0)
    bits = rng.permuted(np.tile(np.arange(64) % 2, (rows, 1)), axis=1).astype(np.uint8)
    return [rng.bytes(32).hex() for _ in range(rows)], [
        row.tobytes().hex() for row in np.packbits(bits, axis=1)
    ]


def test_four_thousand_rows_fit_80_kilobytes_of_safetensors():
    seen = Seen.of(*hashes_of(4000))
    assert len(seen.pixels) == len(seen.phashes) == 4000
    data = save(seen.tensors())
    assert len(data) <= 80_000
    again = Seen.from_tensors(load(data))
    assert (again.pixels == seen.pixels).all()
    assert (again.phashes == seen.phashes).all()


def test_every_row_is_found_among_many():
    pixels, phashes = hashes_of(2000)
    variants = np.zeros((2000, 8), dtype=np.int64)
    variants[:, 3] = [number(text) for text in phashes]
    twins = Seen.of(pixels[::2], phashes[1::2]).twins(pixels, variants)
    assert twins.exact.tolist() == [True, False] * 1000
    assert twins.near.tolist() == [False, True] * 1000


def test_nothing_seen_knows_nothing():
    seen = Seen.from_tensors(Seen.of([], []).tensors())
    assert not twins_of(seen, [picture(0)]).rows.any()
    nothing = seen.twins([], np.zeros((0, 8), dtype=np.int64))
    assert nothing.rows.shape == (0,)


@pytest.mark.parametrize(
    "change",
    [
        {"phashes": None},
        {"more": torch.zeros(1, dtype=torch.int64)},
        {"pixels": torch.tensor([2, 1])},
        {"pixels": torch.tensor([1, 1])},
        {"pixels": torch.tensor([1.0, 2.0])},
        {"phashes": torch.tensor([[1, 2]])},
    ],
)
def test_tensors_of_another_kind_are_refused(change):
    tensors = Seen.of(*hashes_of(3)).tensors() | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(UserError, match="export the bundle again"):
        Seen.from_tensors(kept)


@pytest.mark.parametrize("shape", [(2, 8), (1, 7), (8,)])
def test_variants_of_another_shape_are_our_own_mistake(shape):
    with pytest.raises(ValueError, match="variants"):
        Seen.of([], []).twins(["0" * 64], np.zeros(shape, dtype=np.int64))


def test_hashing_loads_no_torch():
    code = "import sys, btray.core.seen; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_copies_of_real_slices(real_slices):
    """Most of the copies a careless split makes are found; slices of other classes are not."""
    pictures = {
        name: [
            decode(path.read_bytes())
            for path in sorted((real_slices / "Training" / name).iterdir())[:30]
        ]
        for name in ("glioma", "notumor")
    }
    seen = seen_of(pictures["glioma"])
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in pictures["glioma"]]
    assert twins_of(seen, mirrored).near.mean() > 0.8
    assert not twins_of(seen, pictures["notumor"]).rows.any()
