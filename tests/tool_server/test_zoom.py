"""Boxes in, original pixels out.

The images hold their own coordinates, so that a crop says where it was cut.
"""

import math
import random

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tool_server.arguments import parse
from tool_server.images import fitted
from tool_server.tool import ToolCall, ToolError
from tool_server.zoom import (
    MAX_ASPECT,
    ImageZoomIn,
    ZoomArguments,
    image_zoom_in,
    pixel_box,
)


def coordinates(width: int, height: int) -> np.ndarray:
    """Return an RGB image whose red and green are column and row (both below 256)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width)[None, :], np.arange(height)[:, None]
    return image


def zoom(arguments: dict, images: list[np.ndarray], **options) -> np.ndarray:
    call = ToolCall(parse(ZoomArguments, arguments), images)
    text, (crop,) = image_zoom_in(call, ImageZoomIn.model_validate({"min_side": 1} | options))
    assert text == ""
    return crop


def box(
    numbers: list[float], width: int, height: int, min_side: int = 1, **options
) -> tuple[int, int, int, int]:
    return pixel_box(numbers, width, height, ImageZoomIn(min_side=min_side, **options))


def test_crop_is_the_original_pixels():
    image = coordinates(200, 100)
    crop = zoom({"bbox_2d": [250, 100, 500, 900], "label": "digit"}, [image])
    assert crop.shape == (80, 50, 3)  # columns 50..99, rows 10..89
    assert np.array_equal(crop, image[10:90, 50:100])
    crop[:] = 0
    assert image[10, 50].tolist() == [50, 10, 0]  # a copy


def test_box_rounds_outwards():
    assert box([0, 0, 1000, 1000], 7, 5, 1) == (0, 0, 7, 5)
    assert box([333, 333, 334, 334], 10, 10, 1) == (3, 3, 4, 4)
    assert box([150, 150, 250, 250], 10, 10, 1) == (1, 1, 3, 3)  # 1.5 to 2.5


def test_small_box_grows_about_its_centre_and_stays_inside():
    assert box([500, 500, 510, 510], 100, 100, 32) == (34, 34, 66, 66)  # 50..51 grows by 31 to 32
    assert box([0, 990, 10, 1000], 100, 100, 32) == (0, 68, 32, 100)  # shifted at the border
    # The image is narrower than the minimum.
    assert box([0, 0, 10, 10], 20, 100, 32) == (0, 0, 20, 32)


def test_long_box_grows_to_the_aspect_limit():
    assert box([0, 500, 1000, 501], 1000, 1000, 1) == (0, 498, 1000, 503)  # 1000 long needs 5
    with pytest.raises(ToolError, match="too long and thin"):
        box([0, 0, 1000, 1000], 1000, 2)


def test_second_image_and_integral_floats():
    images = [coordinates(10, 10), coordinates(20, 20)]
    assert zoom({"bbox_2d": [0, 0, 1000, 1000], "img_idx": 1.0}, images).shape == (20, 20, 3)
    first_by_default = zoom({"bbox_2d": [0, 0, 1000, 1000]}, images)
    assert first_by_default.shape == (10, 10, 3)


def test_coordinates_are_clamped():
    image = coordinates(10, 10)
    assert zoom({"bbox_2d": [-5, -1e300, 1000.5, 1050]}, [image]).shape == (10, 10, 3)


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
        ({"bbox_2d": [1000, 0, 1040, 100]}, "bbox_2d is empty"),  # after clamping
        (
            {"bbox_2d": [0.1, 0.2, 0.6, 0.9]},
            "bbox_2d: these numbers are fractions of 1; expected 0",
        ),
        ({"bbox_2d": [0, 0, 1, 1]}, "bbox_2d: these numbers are fractions of 1"),
        ({"bbox_2d": [-0.5, 0, 1e-300, 0]}, "bbox_2d: these numbers are fractions of 1"),
        (
            {"bbox_2d": [1200, 300, 1800, 900]},
            "bbox_2d: these numbers are pixels; expected 0 to 1000",
        ),
        ({"bbox_2d": [200, 300, 1800, 900]}, "bbox_2d: these numbers are pixels"),
        ({"bbox_2d": [0, 0, 10**400, 1000]}, "bbox_2d: these numbers are pixels"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": 1}, "img_idx: no such image, expected 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": -1}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": 0.5}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": True}, "img_idx: expected an integer from 0"),
        ({"bbox_2d": [0, 0, 9, 9], "img_idx": math.inf}, "img_idx: expected an integer from 0"),
        (
            {"bbox_2d": [0, 0, 9, 9], "img_idx": "/etc/passwd"},
            "img_idx: expected an integer from 0",
        ),
        ({"bbox_2d": [0, 0, 9, 9], "label": 3}, "label: Input should be a valid string"),
        (
            {"bbox_2d": [0, 0, 9, 9], "url": "x"},
            "unknown argument 'url', known: bbox_2d, label, img_idx",
        ),
        ([1, 2], "arguments must be an object"),
    ],
)
def test_bad_arguments_are_answered(arguments, message):
    with pytest.raises(ToolError) as error:
        zoom(arguments, [coordinates(10, 10)])
    assert str(error.value).startswith(message)


def test_a_crop_of_an_observation_is_cut_from_that_observation():
    question = coordinates(200, 100)
    first = zoom({"bbox_2d": [500, 0, 1000, 1000]}, [question])
    second = zoom({"bbox_2d": [500, 500, 1000, 1000], "img_idx": 1}, [question, first])
    assert np.array_equal(second, question[50:100, 150:200])


def test_a_maximum_downscales_and_nothing_else_does():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (400, 800, 3), np.uint8)
    just_not_exceeded = zoom({"bbox_2d": [0, 0, 500, 1000]}, [image], max_side=400)
    assert np.array_equal(just_not_exceeded, image[:, :400])
    everything = {"bbox_2d": [0, 0, 1000, 1000]}
    scaled = zoom(everything, [image], max_side=200)
    assert scaled.shape == (100, 200, 3)
    expected = Image.fromarray(image).resize((200, 100), Image.Resampling.LANCZOS)
    assert np.array_equal(scaled, np.asarray(expected))
    assert zoom(everything, [image], max_pixels=20_000).shape == (100, 200, 3)
    assert zoom(everything, [image], max_pixels=20_000, max_side=100).shape == (50, 100, 3)


def test_a_long_box_grows_so_that_both_minimum_and_maximum_hold():
    # 1000 x 10 scaled to 100 would be 1 high: for 20 high it has to be 200 high before.
    assert box([0, 500, 1000, 510], 1000, 1000, min_side=20, max_side=100) == (0, 405, 1000, 605)
    crop = zoom(
        {"bbox_2d": [0, 500, 1000, 510]},
        [np.zeros((1000, 1000, 3), np.uint8)],
        min_side=20,
        max_side=100,
    )
    assert crop.shape == (20, 100, 3)
    # An image that is not that high: as far as it reaches.
    assert zoom(
        {"bbox_2d": [0, 0, 1000, 1000]},
        [np.zeros((40, 1000, 3), np.uint8)],
        min_side=20,
        max_side=100,
    ).shape == (4, 100, 3)


@pytest.mark.parametrize(
    "options", [{"max_side": 31}, {"max_pixels": 1023}, {"min_side": 0}, {"max_side": 0}]
)
def test_options_that_contradict(options):
    with pytest.raises(ValidationError):
        ImageZoomIn.model_validate(options)


def test_label_and_index_are_optional():
    tool = ImageZoomIn().open("zoom")
    assert tool.parameters["required"] == ["bbox_2d"]
    assert tool.parameters["properties"]["img_idx"] == {
        "type": "integer",
        "default": 0,
        "description": "Index of the image, starting from 0",
    }
    assert tool.parse({"bbox_2d": [0, 0, 9, 9]}).label == ""
    assert (tool.name, tool.pure) == ("zoom", True)


def test_any_four_numbers_give_a_legal_box_or_a_message():
    random.seed(0)
    edges = [0, 1, 999, 1000, -1, 1001, 0.0, 5e-324, 1e308, 10**30, 499.9999999]
    crops = 0
    for _ in range(5000):
        numbers = [
            random.choice(edges) if random.random() < 0.3 else random.uniform(-100, 1100)
            for _ in range(4)
        ]
        width = random.choice([1, 7, 31, 640, 12000])
        height = random.choice([1, 9, 32, 480])
        min_side = random.choice([1, 28, 32, 64])
        max_side = random.choice([None, 64, 100, 1024])
        max_pixels = random.choice([None, 4096, 100_000])
        options = ImageZoomIn(min_side=min_side, max_side=max_side, max_pixels=max_pixels)
        try:
            clamped = parse(ZoomArguments, {"bbox_2d": numbers}).bbox_2d
            assert parse(ZoomArguments, {"bbox_2d": clamped}).bbox_2d == clamped
            left, top, right, bottom = pixel_box(clamped, width, height, options)
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
        # So does what the policy gets.
        w, h = fitted(right - left, bottom - top, max_side, max_pixels)
        assert max(w, h) <= (max_side or max(w, h))
        assert w * h <= (max_pixels or w * h)
        assert max(w, h) <= MAX_ASPECT * min(w, h)
        if max(right - left, bottom - top) <= options.max_aspect * min(right - left, bottom - top):
            assert w >= min(min_side, width)
            assert h >= min(min_side, height)
    assert crops > 500
