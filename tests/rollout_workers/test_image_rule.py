"""How many tokens an image takes, by hand and by transformers itself."""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from transformers import AutoImageProcessor

from learner.images import image_processor
from rollout_workers.context import Context, PromptCheck
from rollout_workers.image_rule import MAX_ASPECT, ImageRule, ImagesConfig, image_rule

QWEN3_VL = ImageRule(side=32, min_pixels=65_536, max_pixels=16_777_216)
LIMITS = [
    ImagesConfig(),
    ImagesConfig(min_pixels=3136, max_pixels=300_000),
    ImagesConfig(max_pixels=100_000),
    ImagesConfig(min_pixels=200_000),
]


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((1280, 960), 40 * 30),
        ((4000, 4000), 125 * 125),
        ((3840, 2160), 120 * 68),  # 67.5 is rounded to the even number
        ((20, 20), 8 * 8),  # scaled up to 65,536 pixels
        ((1, 1), 8 * 8),
        ((200, 1), 114 * 1),  # sqrt(65,536 / 200) = 18.1 times as large: 3,620 x 18.1 pixels
        # sqrt(33,177,600 / 16,777,216) = 1.406 times too large: 5,461 x 3,072 pixels
        ((7680, 4320), 170 * 96),
    ],
)
def test_tokens_by_hand(size, tokens):
    assert QWEN3_VL.tokens(*size) == tokens
    assert QWEN3_VL.tokens(*size[::-1]) == tokens


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("family", ["thinking", "qwen2_5"])
def test_any_size_takes_as_many_tokens_as_transformers_says(request, family, limits):
    folder = request.getfixturevalue(family)
    rule, processor = image_rule(folder, limits), image_processor(str(folder), limits)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        width, height = (int(2 ** rng.uniform(0, 14)) for _ in range(2))
        if max(width, height) > MAX_ASPECT * min(width, height):
            with pytest.raises(ValueError, match=f"{width}x{height} pixels"):
                rule.tokens(width, height)
            continue
        patches = processor.get_number_of_image_patches(height, width)
        assert rule.tokens(width, height) == patches // processor.merge_size**2


def test_a_folder_may_say_its_limits_in_three_ways(tmp_path):
    own = {"patch_size": 8, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor"}
    size = {"shortest_edge": 1024, "longest_edge": 4096}
    for content in (own | {"size": size}, own | {"min_pixels": 1024, "max_pixels": 4096}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        assert image_rule(tmp_path) == ImageRule(16, 1024, 4096)
    # The newest file counts, if it describes the images.
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert image_rule(tmp_path).max_pixels == 4096
    nested = {"image_processor": own | {"size": size | {"longest_edge": 9000}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert image_rule(tmp_path).max_pixels == 9000


def test_what_a_folder_does_not_say_is_as_in_transformers(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor"})
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    side = processor.patch_size * processor.merge_size
    size = processor.size
    assert image_rule(tmp_path) == ImageRule(side, size["shortest_edge"], size["longest_edge"])


def test_bad_limits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no image processor"):
        image_rule(tmp_path)
    with pytest.raises(ValidationError, match="min_pixels=9: must be at most max_pixels=8"):
        ImagesConfig(min_pixels=9, max_pixels=8)


def test_a_prompt_must_leave_room_for_a_token():
    context = Context(QWEN3_VL, limit=4096)
    context.check(4096 - 1200 - 1, [(1280, 960)])
    with pytest.raises(
        ValueError, match=r"^1,200 tokens of images and 2,896 of text, but .* is 4,096$"
    ):
        context.check(4096 - 1200, [(1280, 960)])


def test_a_text_is_tokenized_only_if_its_bytes_could_be_too_many(chat):
    class Counting:
        texts = 0

        def encode(self, text, add_special_tokens):
            self.texts += 1
            return chat.plain.encode(text, add_special_tokens=add_special_tokens)

    tokenizer = Counting()
    text = "the digit in the red frame is seven. " * 8
    tokens = len(chat.plain.encode(text, add_special_tokens=False).ids)
    assert tokens < len(text) / 2
    check = PromptCheck(Context(QWEN3_VL, 1200 + 10 + tokens + 1), 10, 11, tokenizer)
    check("a", [(1280, 960)])
    assert tokenizer.texts == 0
    check(text, [(1280, 960)])
    assert tokenizer.texts == 1
    # The prompt of a held-out question has a token more.
    with pytest.raises(ValueError, match=f"and {tokens + 11:,} of text"):
        check.held_out(text, [(1280, 960)])
