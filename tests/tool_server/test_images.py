"""Untrusted images: limits are named, bombs cost nothing, and good images look as they should."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tool_server.image_parts import MAX_PARTS, has_too_many
from tool_server.images import (
    MAX_ASPECT,
    MAX_SCANS,
    ImageError,
    ImageLimits,
    check,
    decode,
    fit,
    fitted,
)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extra: bytes, colour: int = 0) -> bytes:
    """Return a PNG whose header promises more than its data holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


def gif_whose_frame_is_larger_than_its_screen() -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHHB", 0, 0, 60000, 60000, 0) + b"\x02\x02\x4c\x01\x00;"


def jpeg_of_many_scans(scans: int) -> bytes:
    data = encode(Image.new("RGB", (64, 64), (9, 9, 9)), "JPEG", progressive=True)
    starts = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    refinement = data[starts[5] : starts[6]]
    return data[: starts[5]] + refinement * scans + data[starts[5] :]


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))

BOMBS = {
    "1x89,000,000": (png(1, 89_000_000), "is 1x89000000 pixels, the limit of a side is 16,384"),
    "60000x60000": (png(60_000, 60_000), "DecompressionBombError"),
    "9400x9400": (png(9400, 9400), "is 9400x9400 pixels, the limit is 16,000,000 in all"),
    "4001x4000": (png(4001, 4000), "is 4001x4000 pixels, the limit is 16,000,000 in all"),
    "201:1": (png(201, 1), "is 201x1 pixels, the limit of long to short side is 200"),
    "1:227": (png(10, 2270), "is 10x2270 pixels, the limit of long to short side is 200"),
    "zTXt": (
        png(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))),
        "Decompressed data too large",
    ),
    "iCCP": (
        png(9, 9, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000), 9))),
        "Decompressed data too large",
    ),
    "GIF frame": (gif_whose_frame_is_larger_than_its_screen(), "DecompressionBombError"),
    "scans": (jpeg_of_many_scans(1000), f"has more than {MAX_SCANS} scans"),
    "bytes": (encode(PHOTO) + bytes(20_000_000), "is larger than 20,000,000 bytes"),
    "truncated PNG": (encode(PHOTO)[:-4000], "cannot be read: OSError"),
    "truncated JPEG": (
        encode(PHOTO, "JPEG")[:-500],
        "cannot be read: OSError: image file is truncated",
    ),
    "truncated WEBP": (encode(PHOTO, "WEBP")[:-200], "cannot be read"),
    "data too short": (png(3000, 3000), "cannot be read: OSError"),
    "empty": (b"", "is not a readable PNG, JPEG, WEBP, GIF image"),
    "text": (b"GET / HTTP/1.1\n\n", "is not a readable PNG, JPEG, WEBP, GIF image"),
    "magic only": (b"\x89PNG\r\n\x1a\nnot really", "cannot be read: OSError"),
    "TIFF": (encode(PHOTO, "TIFF"), "is not a readable PNG, JPEG, WEBP, GIF image"),
    "BMP": (encode(PHOTO, "BMP"), "is not a readable PNG, JPEG, WEBP, GIF image"),
    "ICO": (encode(PHOTO, "ICO"), "is not a readable PNG, JPEG, WEBP, GIF image"),
    "EPS": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "is not a readable PNG, JPEG, WEBP, GIF image",
    ),
}


def test_the_smallest_bomb_is_74_bytes_or_less():
    assert len(BOMBS["1x89,000,000"][0]) <= 74


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_one_line(name):
    data, message = BOMBS[name]
    with pytest.raises(ImageError) as error:
        decode(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_bombs_cost_neither_time_nor_memory(tmp_path):
    for number, (data, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}").write_bytes(data)
    script = """
import pathlib, re, sys
from tool_server.images import ImageError, check, decode
from PIL import Image, PngImagePlugin, JpegImagePlugin, GifImagePlugin, WebPImagePlugin

def peak():  # not getrusage's: that begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

before = peak()
refused = 0
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    for take in (check, decode):
        try:
            take(path)
        except ImageError:
            refused += 1
print(refused, peak() - before)
"""
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.monotonic() - started < 30
    refused, kilobytes = map(int, run.stdout.split())
    # `check` decodes nothing, so it passes what is only cut short.
    assert refused >= 2 * len(BOMBS) - 5
    # The file of 20 MB is read. The one of 74 bytes alone would take 340 MB.
    assert kilobytes < 100_000


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_four_formats(format):
    pixels = decode(encode(Image.new("RGB", (60, 40), (250, 10, 20)), format))
    assert (pixels.shape, pixels.dtype) == ((40, 60, 3), np.uint8)
    assert np.abs(pixels[20, 30].astype(int) - [250, 10, 20]).max() < 10
    assert not pixels.flags.writeable


def test_lossless_pixels_are_exact():
    assert np.array_equal(decode(encode(PHOTO)), np.asarray(PHOTO))
    assert np.array_equal(decode(encode(PHOTO, "WEBP", lossless=True)), np.asarray(PHOTO))


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("L", (4, 4), 100), "PNG", [100, 100, 100]),
        (Image.new("1", (4, 4), 1), "PNG", [255, 255, 255]),
        # Pillow's convert() would clip it to 255.
        (Image.fromarray(np.full((4, 4), 0x8123, np.uint16)), "PNG", [0x81, 0x81, 0x81]),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", [254, 0, 0]),
        # Transparent: white, not its hidden colour.
        (Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG", [255, 255, 255]),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "WEBP", [127, 127, 127]),
        (Image.new("LA", (4, 4), (50, 255)), "PNG", [50, 50, 50]),
        (
            Image.new("RGB", (4, 4), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE),
            "PNG",
            [1, 2, 3],
        ),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_modes_become_rgb(image, format, expected):
    options = {"lossless": True} if format == "WEBP" else {}
    pixel = decode(encode(image, format, **options))[1, 1]
    assert np.abs(pixel.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(
        frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options
    )
    assert decode(data)[8, 8].tolist() == [255, 0, 0]


def test_a_photo_lying_on_its_side_is_put_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    image = Image.new("RGB", (60, 40), "white")
    image.paste("red", (0, 0, 60, 10))
    pixels = decode(encode(image, "JPEG", exif=exif, quality=95))
    assert pixels.shape == (60, 40, 3)
    assert pixels[30, 37, 1] < 60 < 200 < pixels[30, 10, 1]  # the top edge is now the right one


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_does_not_lose_a_photo():
    data = encode(
        PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\0"
    )
    assert decode(data).shape == (40, 60, 3)


def test_limits_come_from_a_recipe():
    limits = ImageLimits.model_validate(
        {"formats": ["PNG"], "max_pixels": 2400, "max_bytes": 10_000}
    )
    assert decode(encode(PHOTO), limits).shape == (40, 60, 3)
    with pytest.raises(ImageError, match="is not a readable PNG image"):
        decode(encode(PHOTO, "JPEG"), limits)
    with pytest.raises(ImageError, match=r"is 61x40 pixels, the limit is 2,400 in all"):
        decode(encode(PHOTO.resize((61, 40))), limits)
    with pytest.raises(ValidationError):
        ImageLimits(max_pixels=10**9)
    with pytest.raises(ValidationError):
        ImageLimits.model_validate({"formats": ["EPS"]})


def test_paths(tmp_path):
    (tmp_path / "good.png").write_bytes(encode(PHOTO))
    assert decode(tmp_path / "good.png").shape == (40, 60, 3)
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in [
        ("none.png", "is not there"),
        ("pipe.png", "is not a file"),
        (".", "is not a file"),
        ("a\0b", ""),
    ]:
        with pytest.raises(ImageError) as error:
            decode(tmp_path / name)
        assert message in str(error.value)


def test_check_decodes_nothing_but_verifies_checksums():
    check(encode(PHOTO, "JPEG"))
    broken = bytearray(encode(PHOTO))
    broken[len(broken) // 2] ^= 1
    with pytest.raises(ImageError, match="cannot be read: SyntaxError: broken PNG file"):
        check(bytes(broken))
    with pytest.raises(ImageError, match="limit of a side"):
        check(png(1, 89_000_000))


def test_fit_keeps_or_downscales():
    pixels = np.asarray(PHOTO)
    assert fit(pixels, None, None) is pixels
    assert fit(pixels, 60, 2400) is pixels
    assert fit(pixels, 30, None).shape == (20, 30, 3)
    assert fit(pixels, None, 600).shape == (20, 30, 3)
    assert np.abs(fit(np.full((100, 100, 3), 77, np.uint8), 10, None).astype(int) - 77).max() == 0


def test_any_size_fits():
    rng = np.random.default_rng(0)
    for _ in range(5000):
        width = int(2 ** rng.uniform(0, 14))
        height = int(2 ** rng.uniform(0, 14))
        if max(width, height) > MAX_ASPECT * min(width, height):
            continue
        side = None if rng.random() < 0.3 else int(2 ** rng.uniform(0, 15))
        area = None if rng.random() < 0.3 else int(2 ** rng.uniform(0, 24))
        w, h = fitted(width, height, side, area)
        assert 1 <= w <= min(width, side or width)
        assert 1 <= h <= min(height, side or height)
        assert w * h <= (area or w * h)
        assert max(w, h) <= MAX_ASPECT * min(w, h)
        if min(w, h) >= 50:
            assert abs(w / h / (width / height) - 1) < 0.04  # not distorted


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_larger_image_is_scaled_down_upright(format, orientation):
    left_half_red = Image.new("RGB", (1200, 800), "blue")
    left_half_red.paste("red", (0, 0, 600, 800))
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: rotate by 90 degrees clockwise
    data = encode(left_half_red, format, exif=exif)
    limits = ImageLimits(scale_above=60_000)
    # sqrt(60,000 / (1,200 x 800)) = 0.25
    assert check(data, limits) == (300, 200)
    pixels = decode(data, limits)
    turned = orientation == 6
    assert pixels.shape == ((300, 200, 3) if turned else (200, 300, 3))
    red, blue = (
        (pixels[75, 100], pixels[225, 100]) if turned else (pixels[100, 75], pixels[100, 225])
    )
    assert (np.abs(red.astype(int) - [255, 0, 0]) < 5).all()
    assert (np.abs(blue.astype(int) - [0, 0, 255]) < 5).all()


def test_an_image_within_the_limit_is_decoded_as_ever():
    assert np.array_equal(decode(encode(PHOTO), ImageLimits(scale_above=2400)), np.asarray(PHOTO))
    assert check(encode(PHOTO)) == (60, 40)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_check_finds_every_cut_that_decoding_finds(form):
    pixels = np.random.default_rng(1).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    preview, file = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels[:8, :8]).save(preview, "JPEG")
    # A preview, as cameras write it, has an end of its own.
    extra = {"exif": b"Exif\0\0" + preview.getvalue()} if form == "JPEG" else {}
    Image.fromarray(pixels).save(file, form, **extra)
    whole, found = file.getvalue(), 0
    for length in range(len(whole) // 2, len(whole)):
        try:
            decode(whole[:length])
        except ImageError:
            found += 1
            with pytest.raises(ImageError):
                check(whole[:length])
    assert found > len(whole) // 4
    assert check(whole) == (50, 40)
    assert check(whole + b"\0" * 9) == (50, 40)


def empty_parts() -> dict[str, bytes]:
    """Return files of a small image with very many parts that are empty."""
    small = Image.new("L", (8, 8))
    jpeg, gif = encode(small, "JPEG"), encode(small, "GIF")
    many = MAX_PARTS + 1
    return {
        "PNG chunks": png(8, 8, chunk(b"prVt", b"") * many),
        "JPEG comments": jpeg[:2] + b"\xff\xfe\0\2" * many + jpeg[2:],
        "JPEG application data": jpeg[:2] + b"\xff\xef\0\2" * many + jpeg[2:],
        "JPEG tables": jpeg[:2] + b"\xff\xdb\0\2" * many + jpeg[2:],
        "JPEG segments without a length": jpeg[:2] + b"\xff\xd0" * many + jpeg[2:],
        "JPEG filling": jpeg[:2] + b"\xff" * many + jpeg[2:],
        "JPEG junk": jpeg[:2] + b"x" * many + jpeg[2:],
        "GIF extensions": gif[: gif.index(b",")] + b"!\xfe\0" * many + gif[gif.index(b",") :],
        "GIF sub-blocks": gif[: gif.index(b",")] + b"!\xfe" + b"\1x" * many + b"\0,",
        "GIF junk": gif[: gif.index(b",")] + b"x" * many + gif[gif.index(b",") :],
    }


@pytest.mark.parametrize("name", empty_parts())
def test_a_file_of_very_many_parts_is_refused_before_they_are_read(name):
    """Each costs a turn of a loop in Python: 20 MB of them took 5 to 15 s."""
    data = empty_parts()[name]
    started = time.process_time()
    for read in (check, decode):
        with pytest.raises(ImageError, match=r"^has more than 100,000 parts$"):
            read(data)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF"])
def test_a_usual_file_has_few_parts(form):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x010E] = "a text " * 1000
    data = encode(image, form, exif=exif) if form != "GIF" else encode(image, form)
    assert not has_too_many(data)
    assert not has_too_many(data[: len(data) // 2])  # one that is cut, too
    assert decode(data).shape == (400, 600, 3)
    for made in (b"", data[:3], data[:11], data[:20]):
        assert not has_too_many(made)
