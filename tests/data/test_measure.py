import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from btray.core.images import ImageError, decode
from btray.data.head import thumbnail
from btray.data.measure import measure, pixel_sha256


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_what_is_measured(draw, encoded):
    pixels = draw(1, 40)
    data = encoded(pixels)
    found = measure(data)
    assert (found.height, found.width, found.mode) == (40, 40, "L")
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.pixel_sha256 == pixel_sha256(pixels)
    assert len(found.phash) == 16
    assert found.thumbnail == thumbnail(pixels).tobytes()


def test_same_pixels_in_another_file_have_the_same_pixel_hash(draw, encoded):
    one, other = measure(encoded(draw(1), "PNG")), measure(encoded(draw(1), "BMP"))
    assert one.pixel_sha256 == other.pixel_sha256
    assert one.sha256 != other.sha256


def test_the_shape_is_part_of_the_pixel_hash():
    assert pixel_sha256(np.zeros((4, 8), np.uint8)) != pixel_sha256(np.zeros((8, 4), np.uint8))


def test_sixteen_bit_png_is_scaled_from_its_own_range():
    pixels = np.linspace(1000, 40_000, 32 * 32).reshape(32, 32).astype(np.uint16)
    data = saved(Image.fromarray(pixels), "PNG")
    expected = np.round((pixels - 1000.0) / 39_000 * 255)
    assert np.abs(decode(data).astype(float) - expected).max() <= 1
    assert measure(data).mode.startswith("I")


def test_cmyk_jpeg_has_the_grey_of_its_colours():
    rgb = Image.new("RGB", (32, 32), (200, 100, 50))
    data = saved(rgb.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data).astype(int) - 124).max() <= 3
    assert measure(data).mode == "CMYK"


def test_palette_png_has_the_grey_of_its_palette():
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    data = saved(image, "PNG")
    assert set(decode(data).flat) == {76}
    assert measure(data).mode == "P"


def test_alpha_png_is_laid_on_black():
    image = Image.new("RGBA", (32, 32), (200, 200, 200, 255))
    image.paste((200, 200, 200, 0), (0, 0, 16, 32))
    data = saved(image, "PNG")
    assert set(decode(data)[:, :16].flat) == {0}
    assert set(decode(data)[:, 16:].flat) == {200}
    assert measure(data).mode == "RGBA"


def test_refused_bytes_raise():
    with pytest.raises(ImageError, match="not an image"):
        measure(b"text, renamed .jpg")
