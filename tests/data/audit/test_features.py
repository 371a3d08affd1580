import io

import numpy as np
import pytest
from PIL import Image

from btray.core.head import head_box
from btray.data.audit.features import SIDE, STYLE, content, examine, faults, style


def head(size=128, inset=20, seed=0):
    """A bright disc with texture on black."""
    rows, columns = np.ogrid[:size, :size]
    inside = np.hypot(rows - size / 2, columns - size / 2) < size / 2 - inset
    texture = np.random.default_rng(seed).integers(60, 200, (size, size))
    return np.where(inside, texture, 0).astype(np.uint8)


def encode(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def styled(pixels):
    return dict(zip(STYLE, style(encode(pixels), pixels, head_box(pixels)), strict=True))


def test_style_does_not_see_what_is_in_the_head():
    one, other = styled(head(seed=0)), styled(head(seed=1))
    assert one == pytest.approx(other, abs=0.03)


def test_style_sees_frame_margins_and_background():
    plain, framed = head(), head()
    framed[:4] = framed[-4:] = 255
    framed[:, :4] = framed[:, -4:] = 255
    assert styled(framed)["frame brightness"] > styled(plain)["frame brightness"] + 200
    assert styled(head(inset=40))["margin top"] > styled(head(inset=5))["margin top"] + 0.2
    noisy = plain.copy()
    noisy[:15] += np.random.default_rng(0).integers(0, 9, (15, 128)).astype(np.uint8)
    assert styled(noisy)["background sharpness"] > styled(plain)["background sharpness"]
    assert styled(noisy)["background greys 0-0"] < styled(plain)["background greys 0-0"]


def test_style_sees_the_file():
    pixels = head()
    colour = np.repeat(pixels[..., None], 3, axis=2)
    box = head_box(pixels)
    of = {
        name: dict(zip(STYLE, style(data, pixels, box), strict=True))
        for name, data in {
            "png": encode(pixels),
            "coarse": encode(pixels, "JPEG", quality=40),
            "fine": encode(colour, "JPEG", quality=95),
        }.items()
    }
    assert [of[name]["colour"] for name in of] == [0, 0, 1]
    assert of["png"]["compression"] == 0
    assert of["coarse"]["compression"] > of["fine"]["compression"] > 0


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (head(), []),
        (np.full((64, 64), 90, np.uint8), ["blank"]),
        (255 - head(), ["inverted"]),
        (head(inset=48), ["oversized border"]),
    ],
)
def test_faults(pixels, expected):
    assert faults(pixels, head_box(pixels)) == expected


def test_content_is_the_head_wherever_it_stands():
    small = head(96, 4)
    padded = np.pad(small, ((10, 60), (30, 40)))
    pictures = [content(pixels, head_box(pixels)).ravel() for pixels in (small, padded)]
    assert pictures[0].shape == (SIDE * SIDE,)
    assert np.corrcoef(pictures)[0, 1] > 0.9


def test_all_of_it_comes_from_the_bytes():
    found = examine(encode(head(), "JPEG"))
    assert found.style.shape == (len(STYLE),)
    assert np.isfinite(found.style).all()
    assert found.faults == []
