import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from btray.core.images import MIN_SIDE, ImageError, decode


def picture(seed, height=48, width=48):
    """Smooth random grey pixels [height, width], like a slice more than like noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, kind, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def code(data):
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.code


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_by_hand(width, height, rows, colour=0, interlace=0):
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


def interlaced_png(pixels):
    """Adam7 by hand: Pillow reads interlaced PNG but does not write it."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
    passes += ((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b""
    for top, left, down, across in passes:
        part = pixels[top::down, left::across]
        rows += b"".join(b"\0" + row.tobytes() for row in part)
    return png_by_hand(pixels.shape[1], pixels.shape[0], rows, interlace=1)


def orientation(value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


GREY = picture(0)
COLOUR = np.stack([picture(1), picture(2), picture(3)], axis=-1)
ALPHA = picture(4)
FRAMES = [Image.fromarray(picture(seed)) for seed in range(5, 8)]


def luma(colour):
    return colour.astype(np.float64) @ (0.299, 0.587, 0.114)


def assert_close(pixels, expected, levels):
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(np.float64) - expected).max() <= levels


# What is refused


def test_empty_bytes():
    assert code(b"") == "empty"


@pytest.mark.parametrize(
    "data",
    [
        b"not an image, whatever its name",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n",
        b"\0" * 500,
    ],
    ids=["text", "start of a JPEG", "start of a GIF", "EPS", "zeros"],
)
def test_what_is_no_image(data):
    assert code(data) == "not_an_image"


WHOLE = {
    "jpeg": encode(GREY, "JPEG"),
    "jpeg colour": encode(COLOUR, "JPEG"),
    "jpeg progressive": encode(GREY, "JPEG", progressive=True),
    "png": encode(GREY, "PNG"),
    "png interlaced": interlaced_png(GREY),
    "bmp": encode(GREY, "BMP"),
    "gif": encode(GREY, "GIF"),
    "webp": encode(GREY, "WEBP"),
    "tiff": encode(GREY, "TIFF"),
    "tiff lzw": encode(GREY, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_image_cut_short_is_refused(name):
    data = WHOLE[name]
    codes = {code(data[: len(data) * part // 100]) for part in (30, 50, 75, 95)}
    assert codes <= {"unreadable", "not_an_image"}


@pytest.mark.parametrize("name", WHOLE)
def test_the_very_end_cut_off_never_changes_a_pixel(name):
    data, whole = WHOLE[name], decode(WHOLE[name])
    for missing in range(1, 40):
        try:
            pixels = decode(data[:-missing])
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, whole)


@pytest.mark.parametrize("name", ["jpeg", "jpeg colour", "jpeg progressive"])
@pytest.mark.parametrize("filler", [b"\0", b"\xff"])
def test_a_jpeg_whose_rest_was_never_written_is_refused(name, filler):
    data = WHOLE[name]
    assert code(data[: len(data) * 3 // 4] + filler * 20 * len(data)) == "unreadable"


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    np.testing.assert_array_equal(
        decode(WHOLE["jpeg"] + b"\0" * 100 + b"appendix"), decode(WHOLE["jpeg"])
    )


def test_a_png_with_damaged_pixels_is_refused():
    data = bytearray(WHOLE["png"])
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    assert code(bytes(data)) == "unreadable"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_one_pixel_is_too_small(kind):
    assert code(encode(np.zeros((1, 1), np.uint8), kind)) == "too_small"


def test_the_shorter_side_counts():
    assert code(encode(picture(0, MIN_SIDE - 1, 400), "PNG")) == "too_small"


def test_the_smallest_size_is_taken():
    assert decode(encode(picture(0, MIN_SIDE, MIN_SIDE), "PNG")).shape == (MIN_SIDE, MIN_SIDE)


@pytest.mark.parametrize("side", [7_100, 12_000, 20_000, 2**31 - 1])
def test_a_bomb_is_refused_before_its_pixels_are_decoded(side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert code(png_by_hand(side, side, b"\0" * 1000)) == "too_large"


def test_refusing_a_bomb_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert code(png_by_hand(12_000, 12_000, b"\0")) == "too_large"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_or_several_pages(kind):
    data = encode(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
    assert code(data) == "several_frames"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite(bad):
    pixels = GREY.astype(np.float32)
    pixels[3, 5] = bad
    assert code(encode(pixels, "TIFF")) == "not_finite"


def test_colours_that_cannot_be_made_grey_are_refused():
    lab = Image.fromarray(COLOUR).convert("LAB")
    assert code(encode(lab, "TIFF")) == "unreadable"


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff"])
def test_the_reason_is_one_line_without_paths_of_a_build(name):
    with pytest.raises(ImageError) as caught:
        decode(WHOLE[name][:-80])
    assert "\n" not in str(caught.value)
    assert "/" not in str(caught.value)


# What is read


@pytest.mark.parametrize(
    "data",
    [
        WHOLE["png"],
        WHOLE["bmp"],
        WHOLE["gif"],
        WHOLE["tiff"],
        WHOLE["tiff lzw"],
        WHOLE["png interlaced"],
        encode(GREY, "WEBP", lossless=True),
        encode(np.stack([GREY] * 3, axis=-1), "PNG"),
        encode(Image.fromarray(GREY).convert("P"), "PNG"),
    ],
    ids=["png", "bmp", "gif", "tiff", "lzw", "interlaced", "webp", "rgb", "palette"],
)
def test_grey_pixels_come_back_exactly(data):
    np.testing.assert_array_equal(decode(data), GREY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_result_is_a_writeable_array_of_bytes_height_first(kind):
    pixels = decode(encode(picture(0, height=40, width=64), kind))
    assert (pixels.shape, pixels.dtype) == ((40, 64), np.uint8)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_colour_becomes_luma(kind):
    assert_close(decode(encode(COLOUR, kind)), luma(COLOUR), 1)


def test_a_palette_becomes_luma():
    palette = Image.fromarray(COLOUR).quantize(64)
    assert_close(decode(encode(palette, "PNG")), luma(np.asarray(palette.convert("RGB"))), 1)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [50, 95])
def test_a_grey_jpeg_is_what_pillow_decodes(quality, progressive):
    data = encode(GREY, "JPEG", quality=quality, progressive=progressive)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_colour_jpeg_becomes_luma(progressive, subsampling):
    options = {"quality": 95, "progressive": progressive, "subsampling": subsampling}
    assert_close(decode(encode(COLOUR, "JPEG", **options)), luma(COLOUR), 8)


def test_grey_stored_as_a_colour_jpeg_is_the_grey_jpeg():
    colour = encode(np.stack([GREY] * 3, axis=-1), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(colour), decode(encode(GREY, "JPEG", quality=95)))


def test_a_cmyk_jpeg_becomes_luma():
    data = encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95)
    assert_close(decode(data), luma(COLOUR), 8)


def test_transparent_grey_is_laid_on_black():
    pixels = decode(encode(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"))
    assert_close(pixels, GREY * (ALPHA / 255), 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparent_colour_is_laid_on_black(kind):
    pixels = decode(encode(np.dstack([COLOUR, ALPHA]), kind))
    assert_close(pixels, luma(COLOUR * (ALPHA[..., None] / 255)), 1.5)


def test_a_transparent_palette_entry_is_black():
    palette = Image.fromarray(COLOUR).quantize(16)
    indices = np.asarray(palette)
    pixels = decode(encode(palette, "PNG", transparency=int(indices[0, 0])))
    assert_close(
        pixels,
        np.where(indices == indices[0, 0], 0, luma(np.asarray(palette.convert("RGB")))),
        1,
    )


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_transparent_colour_of_a_png_is_black(image):
    clear = image[0, 0]
    key = int(clear) if image.ndim == 2 else tuple(int(channel) for channel in clear)
    mask = image == clear if image.ndim == 2 else (image == clear).all(axis=-1)
    opaque = image if image.ndim == 2 else luma(image)
    assert_close(decode(encode(image, "PNG", transparency=key)), np.where(mask, 0, opaque), 1)


def test_black_and_white_become_0_and_255():
    pixels = decode(encode(Image.fromarray(GREY > 128), "PNG"))
    np.testing.assert_array_equal(pixels, np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_from_their_own_range(kind):
    pixels = GREY.astype(np.uint16) * 4 + 1000
    low, high = int(GREY.min()), int(GREY.max())
    assert_close(decode(encode(pixels, kind)), (GREY - low) / (high - low) * 255, 0.5)


def test_floats_are_scaled_from_their_own_range():
    pixels = (GREY.astype(np.float32) - 100) * 1e-3
    low, high = int(GREY.min()), int(GREY.max())
    assert_close(decode(encode(pixels, "TIFF")), (GREY - low) / (high - low) * 255, 0.51)


def test_floats_over_the_whole_range_do_not_overflow():
    pixels = np.zeros((MIN_SIDE, MIN_SIDE), np.float32)
    pixels[0, 0], pixels[0, 1] = np.finfo(np.float32).min, np.finfo(np.float32).max
    assert decode(encode(pixels, "TIFF"))[0, :3].tolist() == [0, 255, 128]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_flat_image_of_many_bits_is_black(dtype):
    assert not decode(encode(np.full((20, 20), 700, dtype), "TIFF")).any()


# EXIF


TURNED = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", TURNED)
def test_every_format_is_turned_upright(kind, value):
    options = {"quality": 95} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    stored = picture(0, height=32, width=48)
    pixels = decode(encode(stored, kind, exif=orientation(value), **options))
    assert_close(pixels, TURNED[value](stored), 8 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLOUR),
        Image.fromarray(np.dstack([COLOUR, ALPHA])),
        Image.fromarray(COLOUR).quantize(16),
        Image.fromarray(GREY > 128),
        Image.fromarray(GREY.astype(np.uint16) * 100),
    ],
    ids=["RGB", "RGBA", "palette", "1 bit", "16 bit"],
)
def test_every_mode_is_turned_upright(image):
    turned = decode(encode(image, "PNG", exif=orientation(6)))
    np.testing.assert_array_equal(turned, np.rot90(decode(encode(image, "PNG")), -1))


@pytest.mark.parametrize(
    "exif", [orientation(99), b"Exif\0\0damaged", b"Exif\0\0II*\0\xff\xff\xff"]
)
def test_damaged_exif_beside_sound_pixels_is_passed_over(exif):
    data = encode(GREY, "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode(data), decode(WHOLE["jpeg"]))


# Anything at all

SEEDS = [
    *WHOLE.values(),
    encode(COLOUR, "JPEG", exif=orientation(6), progressive=True),
    encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    encode(Image.fromarray(COLOUR).quantize(16), "PNG", transparency=1),
    encode(np.dstack([COLOUR, ALPHA]), "PNG", exif=orientation(8)),
    encode(np.dstack([COLOUR, ALPHA]), "WEBP"),
    encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    encode(GREY.astype(np.uint16), "PNG"),
]


@st.composite
def mutated(draw):
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        # Most of what a decoder trusts stands at the beginning.
        start = draw(st.integers(0, min(len(data), draw(st.sampled_from([64, 256, 10_000])))))
        length = draw(st.sampled_from([0, 1, 1, 1, 4, 20]))
        data[start : start + length] = draw(st.binary(max_size=8))
    return bytes(data)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_mutated_images_give_pixels_or_an_image_error(data):
    try:
        pixels = decode(data)
    except ImageError:
        return
    assert (pixels.ndim, pixels.dtype) == (2, np.uint8)
    assert min(pixels.shape) >= MIN_SIDE


@given(st.binary(max_size=200))
def test_any_bytes_give_an_image_error(data):
    with pytest.raises(ImageError):
        decode(data)


# What comes out smaller


@pytest.mark.parametrize(
    ("side", "at_least", "expected"),
    [
        (512, 224, 256),
        (512, 256, 256),
        (512, 257, 512),
        (512, 64, 64),
        (512, 10, 64),
        (100, 224, 100),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_needed(side, at_least, expected):
    whole = decode(encode(picture(0, side, side), "JPEG", quality=95))
    reduced = decode(encode(picture(0, side, side), "JPEG", quality=95), at_least)
    assert reduced.shape == (expected, expected)
    averaged = whole.reshape(expected, side // expected, expected, side // expected)
    assert_close(reduced, averaged.mean(axis=(1, 3)), 4)


def test_no_side_comes_out_smaller_than_asked():
    assert decode(encode(picture(0, 900, 300), "JPEG"), 224).shape == (900, 300)
    assert decode(encode(picture(0, 900, 500), "JPEG"), 224).shape == (450, 250)


def test_a_reduced_jpeg_is_upright_and_luma():
    whole = encode(Image.fromarray(COLOUR).resize((256, 512)), "JPEG", exif=orientation(6))
    assert decode(whole, 128).shape == (128, 256)


def test_other_formats_come_out_whole():
    assert decode(encode(GREY, "PNG"), 16).shape == GREY.shape


def test_a_reduced_jpeg_cut_short_is_refused():
    data = encode(picture(0, 512, 512), "JPEG")
    for part in (30, 50, 75, 95):
        with pytest.raises(ImageError):
            decode(data[: len(data) * part // 100], 64)
