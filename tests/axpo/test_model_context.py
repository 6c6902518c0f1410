"""What must fit the context of a model: turns, images, questions, tools."""

import pytest

from axpo.config import load_recipe
from axpo.model_folder import check_models
from axpo.model_folder.prompt import schema_of
from tests.axpo.model_folders import (
    DEMO,
    EMBEDDED,
    change,
    copy,
    recipe,
    refused,
    warnings_of_folder,
)
from tool_server.config import ToolConfig
from tool_server.server import schema


@pytest.fixture
def broken(thinking, tmp_path):
    """Return a copy of a sound folder, for a test to break."""
    return copy(thinking, tmp_path / "model")


# The context.


def test_a_context_longer_than_the_model_is_refused(broken):
    change(broken / "config.json", {"text_config/max_position_embeddings": 1000})
    assert refused(broken) == (
        "rollout.max_context_tokens=1024: must be at most 1000, which is max_position_embeddings "
        "of DIR/config.json"
    )


def test_a_turn_that_cannot_fit_the_context_is_refused():
    # The tiny model's prompt has 306 tokens.
    model = EMBEDDED[0]
    fits = recipe(model, "images.max_pixels=16384", "rollout.max_turn_tokens=718")
    assert check_models(fits).warnings == ()
    line = refused(model, "images.max_pixels=16384", "rollout.max_turn_tokens=719")
    assert line == (
        "rollout.max_turn_tokens=719: with the 306 tokens of a prompt without question it must be "
        "at most rollout.max_context_tokens=1024"
    )


def test_images_that_cannot_fit_the_context_are_refused():
    # 1024 - 306 - 1 leaves 717 tokens of 32 x 32 pixels.
    model = EMBEDDED[0]
    room = 717 * 1024
    assert warnings_of_folder(check_models(recipe(model, f"images.max_pixels={room}"))) == []
    assert refused(model, f"images.max_pixels={room + 1024}") == (
        "images.max_pixels=735232: an image may take 718 tokens, a prompt without question 306, "
        "and rollout.max_context_tokens is 1024; at most 734208 fit"
    )


def test_a_folder_whose_largest_image_does_not_fit_is_a_warning(thinking):
    run = load_recipe(DEMO, [f"model={thinking}"])
    (warning,) = warnings_of_folder(check_models(run))
    # 16777216 pixels of the real processor are 16384 tokens.
    assert warning.startswith(f"images.max_pixels is not set, and {thinking} has 16777216: ")
    assert "an image may take 16384 tokens" in warning


def test_limits_of_images_that_contradict_the_folder_are_refused():
    line = refused(EMBEDDED[0], "images.max_pixels=1024")
    assert line == (
        "images: min_pixels 4096 is above max_pixels 1024 (what the recipe leaves open is DIR's)"
    )


def test_a_question_is_counted_with_the_prompt_around_it():
    fits = check_models(recipe(EMBEDDED[0], "images.max_pixels=16384")).fits
    # 306 tokens around it, 16 of an image of 128 x 128: 701 are left, and one must be free.
    # " the" is one token.
    fits(" the" * 701, [(128, 128)])
    with pytest.raises(ValueError, match=r"^16 tokens of images and 1,008 of text, but "):
        fits(" the" * 702, [(128, 128)])


# Tools in the prompt.


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("image_zoom_in", {}),
        ("convert", {"function": "tests.tool_server.user_tools:convert"}),
    ],
)
def test_a_tool_is_counted_as_the_policy_will_see_it(name, settings):
    from tool_server.functions import open_function

    tool = ToolConfig(**settings)
    opened = open_function(name, tool.function) if tool.function else tool.kind_as(name).open(name)
    assert schema_of(name, tool) == schema(opened)


def test_a_tool_that_must_run_to_be_described_is_named():
    shout = "tools.tools={shout: {kind: 'tests.tool_server.user_tools:Shout'}}"
    report = check_models(recipe(EMBEDDED[0], "images.max_pixels=16384", shout))
    expected = "not counted in the prompt: shout (known only when it runs)"
    assert report.warnings == (expected,)
    assert report.lines[1].endswith("of them tools: 0")
