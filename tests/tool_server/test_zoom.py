"""Boxes in, original pixels out. Images hold their own coordinates, so that a crop says where it was cut."""

import math
import random

import numpy as np
import pytest

from tool_server.arguments import parse
from tool_server.tool import ToolCall, ToolError
from tool_server.zoom import MAX_ASPECT, ZoomArguments, ZoomOptions, image_zoom_in, pixel_box


def coordinates(width: int, height: int) -> np.ndarray:
    """RGB image whose red and green are column and row (both below 256)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width)[None, :], np.arange(height)[:, None]
    return image


def zoom(arguments: dict, images: list[np.ndarray], min_side: int = 1) -> np.ndarray:
    text, (crop,) = image_zoom_in(ToolCall(parse(ZoomArguments, arguments), images), ZoomOptions(min_side=min_side))
    assert text == ""
    return crop


def test_crop_is_the_original_pixels():
    image = coordinates(200, 100)
    crop = zoom({"bbox_2d": [250, 100, 500, 900], "label": "digit"}, [image])
    assert crop.shape == (80, 50, 3)  # columns 50..99, rows 10..89
    assert np.array_equal(crop, image[10:90, 50:100])
    crop[:] = 0
    assert image[10, 50].tolist() == [50, 10, 0]  # a copy


def test_box_rounds_outwards():
    assert pixel_box([0, 0, 1000, 1000], 7, 5, 1) == (0, 0, 7, 5)
    assert pixel_box([333, 333, 334, 334], 10, 10, 1) == (3, 3, 4, 4)
    assert pixel_box([150, 150, 250, 250], 10, 10, 1) == (1, 1, 3, 3)  # 1.5 to 2.5


def test_small_box_grows_about_its_centre_and_stays_inside():
    assert pixel_box([500, 500, 510, 510], 100, 100, 32) == (34, 34, 66, 66)  # 50..51 grows by 31 to 32
    assert pixel_box([0, 990, 10, 1000], 100, 100, 32) == (0, 68, 32, 100)  # shifted at the border
    assert pixel_box([0, 0, 10, 10], 20, 100, 32) == (0, 0, 20, 32)  # the image is narrower than the minimum


def test_long_box_grows_to_the_aspect_limit():
    assert pixel_box([0, 500, 1000, 501], 1000, 1000, 1) == (0, 498, 1000, 503)  # 1000 long needs 5
    with pytest.raises(ToolError, match="too long and thin"):
        pixel_box([0, 0, 1000, 1000], 1000, 2, 1)


def test_second_image_and_integral_floats():
    images = [coordinates(10, 10), coordinates(20, 20)]
    assert zoom({"bbox_2d": [0, 0, 1000, 1000], "img_idx": 1.0}, images).shape == (20, 20, 3)
    assert zoom({"bbox_2d": [0, 0, 1000, 1000]}, images).shape == (10, 10, 3)  # the first by default


def test_coordinates_are_clamped():
    image = coordinates(10, 10)
    assert zoom({"bbox_2d": [-5, -1e300, 10**400, 2000]}, [image]).shape == (10, 10, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "bbox_2d is missing"),
        ({"bbox_2d": [1, 2, 3]}, "bbox_2d: expected 4 numbers [x1, y1, x2, y2] from 0 to 1000"),
        ({"bbox_2d": [1, 2, 3, 4, 5]}, "bbox_2d: expected 4 numbers"),
        ({"bbox_2d": "1,2,3,4"}, "bbox_2d: expected 4 numbers"),
        ({"bbox_2d": ["1", 2, 3, 4]}, "bbox_2d: expected 4 numbers"),
        ({"bbox_2d": [True, 2, 3, 4]}, "bbox_2d: expected 4 numbers"),
        ({"bbox_2d": [math.nan, 2, 3, 4]}, "bbox_2d: expected 4 numbers"),
        ({"bbox_2d": [1, 2, math.inf, 4]}, "bbox_2d: expected 4 numbers"),
        ({"bbox_2d": None}, "bbox_2d: expected 4 numbers"),
        ({"bbox_2d": [500, 100, 500, 200]}, "bbox_2d is empty: needs x1 < x2 and y1 < y2"),
        ({"bbox_2d": [600, 100, 500, 200]}, "bbox_2d is empty"),
        ({"bbox_2d": [1000, 0, 1200, 100]}, "bbox_2d is empty"),  # after clamping
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": 1}, "img_idx: no such image, expected 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": -1}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": 0.5}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": True}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": math.inf}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": "/etc/passwd"}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "label": 3}, "label: Input should be a valid string"),
        ({"bbox_2d": [0, 0, 9, 9], "url": "x"}, "unknown argument 'url', known: bbox_2d, label, img_idx"),
        ([1, 2], "arguments must be an object"),
    ],
)
def test_bad_arguments_are_answered(arguments, message):
    with pytest.raises(ToolError) as error:
        zoom(arguments, [coordinates(10, 10)])
    assert str(error.value).startswith(message)


def test_any_four_numbers_give_a_legal_box_or_a_message():
    random.seed(0)
    edges = [0, 1, 999, 1000, -1, 1001, 0.0, 5e-324, 1e308, 10**30, 499.9999999]
    crops = 0
    for _ in range(5000):
        box = [random.choice(edges) if random.random() < 0.3 else random.uniform(-100, 1100) for _ in range(4)]
        width, height, min_side = random.choice([1, 7, 31, 640, 12000]), random.choice([1, 9, 32, 480]), random.choice([1, 28, 32, 64])
        try:
            clamped = parse(ZoomArguments, {"bbox_2d": box}).bbox_2d
            assert parse(ZoomArguments, {"bbox_2d": clamped}).bbox_2d == clamped
            left, top, right, bottom = pixel_box(clamped, width, height, min_side)
        except ToolError:
            continue
        crops += 1
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left >= min(min_side, width)
        assert bottom - top >= min(min_side, height)
        assert max(right - left, bottom - top) <= MAX_ASPECT * min(right - left, bottom - top)
        # The grown box still holds what was asked for.
        x1, y1, x2, y2 = clamped
        assert left <= x1 * width / 1000
        assert right >= x2 * width / 1000
        assert top <= y1 * height / 1000
        assert bottom >= y2 * height / 1000
    assert crops > 500
