import numpy as np
from PIL import Image

from btray.data.candidates import find_candidates, variants
from btray.data.head import thumbnail
from btray.data.registration import glance, similarity

UPRIGHT = np.eye(2, 3, dtype=np.float32)[None, None]


def of(pixels):
    return thumbnail(pixels)[None]


def test_an_image_is_wholly_alike_itself(draw):
    assert similarity(of(draw(1)), of(draw(1)), UPRIGHT)[0] > 0.999
    assert glance(of(draw(1)), of(draw(1)), UPRIGHT[:, 0])[0] > 0.999


def test_different_images_are_not_alike(draw):
    for seed in range(10):
        assert similarity(of(draw(seed)), of(draw(seed + 100)), UPRIGHT)[0] < 0.6


def test_a_shift_is_found_from_a_start_beside_it(draw):
    pixels = draw(3, 256)
    one, other = pixels[:230, :230], pixels[8:238, 5:235]
    plain = np.stack([np.asarray(Image.fromarray(i).resize((64, 64), 4)) for i in (one, other)])
    assert similarity(plain[:1], plain[1:], UPRIGHT)[0] > 0.9


def test_the_right_start_is_chosen_among_several(draw):
    starts = np.stack([variants()[[40, 0, 80]]])
    assert similarity(of(draw(4)), of(draw(4)), starts)[0] > 0.99


def test_no_pairs():
    none = np.zeros((0, 64, 64), np.uint8)
    assert similarity(none, none, np.zeros((0, 3, 2, 3), np.float32)).shape == (0,)


def test_candidates_hold_every_pair_once_and_never_an_image_with_itself(draw):
    found = find_candidates(np.concatenate([of(draw(seed % 9)) for seed in range(20)]))
    assert (found.pairs[:, 0] != found.pairs[:, 1]).all()
    assert len(np.unique(np.sort(found.pairs, axis=1), axis=0)) == len(found.pairs)
    pairs = {tuple(sorted(pair)) for pair in found.pairs.tolist()}
    assert {(a, b) for a in range(20) for b in range(a + 1, 20) if (b - a) % 9 == 0} <= pairs


def test_nothing_like_one_another_is_no_candidate():
    flat = np.zeros((5, 64, 64), np.uint8)
    assert find_candidates(flat).pairs.shape == (0, 2)
