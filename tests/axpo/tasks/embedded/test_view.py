"""What the policy sees of a small digit, measured with the processors of real-shaped folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from axpo.config import load_recipe
from axpo.model_folder import check_models
from axpo.tasks.embedded.pictures import Frame
from axpo.tasks.embedded.small_digit import SmallDigit
from learner.images import image_processor
from rollout_workers.image_rule import image_rule
from rollout_workers.trajectory import Pixels
from tool_server.tool import ToolCall
from tool_server.zoom import ImageZoomIn, ZoomArguments, image_zoom_in

TINY = Path("axpo/models/qwen3-vl-tiny")
RECIPE = "deploy/recipes/qwen3-vl-2b-thinking.yaml"
NATURAL = 8
"""Pixels a side that the handwritten digits were scanned with: fewer lose some of them."""


def seen_side(processor: Any, picture: Pixels) -> float:
    """Return the side of a white square in a black picture, in pixels that the model sees."""
    values = processor([Image.fromarray(picture)], return_tensors="np")["pixel_values"]
    # Three channels, and each picture twice in time.
    return float(np.sqrt(values.sum() / 6))


def square(task: SmallDigit, frame: Frame) -> Pixels:
    """Return a black scene with a white square in the place of a digit."""
    picture = np.zeros((task.config.scene, task.config.scene, 3), np.uint8)
    start_x, start_y = frame.left + frame.border, frame.top + frame.border
    side = task.config.digit
    picture[start_y : start_y + side, start_x : start_x + side] = 255
    return picture


def view_and_zoom(folder: Path, recipe_file: str) -> tuple[float, float]:
    """Return the side of a digit in the whole view and in a careful zoom, as the model sees it."""
    recipe = load_recipe(recipe_file)
    task = recipe.task.load()
    drawn = task.draw("train", 0)
    frame = drawn.shown.frames[0]
    processor = image_processor(str(folder), recipe.images)
    processor.image_mean, processor.image_std = [0.0] * 3, [1.0] * 3
    scene = square(task, frame)
    box = drawn.question.info["boxes"][frame.colour]
    call = ToolCall(ZoomArguments(bbox_2d=[float(edge) for edge in box]), (scene,))
    _, (crop,) = image_zoom_in(call, ImageZoomIn())
    return seen_side(processor, scene), seen_side(processor, crop)


def test_a_zoom_shows_a_digit_of_the_recipes_that_the_view_does_not(thinking):
    view, zoom = view_and_zoom(thinking, RECIPE)
    assert view == pytest.approx(5, rel=0.05)
    assert zoom == pytest.approx(20, rel=0.05)
    assert view < NATURAL < zoom
    # The other sizes ask the same questions, and see them as large.
    recipe = load_recipe(RECIPE)
    for size in ("4b", "8b"):
        other = load_recipe(RECIPE.replace("2b", size))
        assert (other.task, other.images) == (recipe.task, recipe.images)


def test_the_other_processor_shows_the_same(qwen2_5):
    view, zoom = view_and_zoom(qwen2_5, RECIPE)
    # Its tokens are 28 pixels wide: 18 of them are 504.
    assert view == pytest.approx(20 * 504 / 2048, rel=0.05)
    assert zoom == pytest.approx(20 * 504 / 512, rel=0.05)


def test_the_embedded_model_sees_half_of_a_digit_and_a_zoom_all_of_it():
    view, zoom = view_and_zoom(TINY, "deploy/recipes/demo.yaml")
    assert view == pytest.approx(5, rel=0.05)
    assert zoom == pytest.approx(10, rel=0.05)


def test_a_task_whose_zoom_shows_nothing_new_is_remarked_upon(thinking):
    recipe = load_recipe(RECIPE)
    assert recipe.task.remarks(image_rule(thinking, recipe.images)) == []
    demo = load_recipe("deploy/recipes/demo.yaml")
    assert demo.task.remarks(image_rule(TINY)) == []
    # The folder's own limit is 4,096 x 4,096 pixels: it shows a scene whole.
    (remark,) = recipe.task.remarks(image_rule(thinking))
    assert "20 pixels with 20 in the whole view and with 20 in a zoom" in remark
    family = {"task": recipe.task.spec()}
    mixed = load_recipe(
        RECIPE, [f"task={json.dumps({'kind': 'mixed', 'families': {'a': family}})}"]
    )
    assert mixed.task.remarks(image_rule(thinking)) == [remark]
    model = [f"model={thinking}", "images.max_pixels=null", "rollout.max_turn_tokens=2048"]
    assert check_models(load_recipe(RECIPE, model)).warnings[-1] == remark
