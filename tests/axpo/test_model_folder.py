"""Model folders that work, and broken ones: one thing wrong in each, and the line that says so."""

import json

import pytest

from axpo.model_folder import check_models
from axpo.model_folder.weights import check_weights
from rollout_workers.families import what_works
from tests.axpo.model_folders import (
    EMBEDDED,
    EMBEDDING,
    HEAD,
    NORM,
    change,
    copy,
    recipe,
    refused,
    rewrite,
    warnings_of_folder,
    write,
    write_zeros,
)
from tool_server.server import schema


@pytest.fixture
def broken(thinking, tmp_path):
    """Return a copy of a sound folder, for a test to break."""
    return copy(thinking, tmp_path / "model")


# Sound folders.


@pytest.mark.parametrize("model", EMBEDDED)
def test_the_embedded_models_pass(model):
    report = check_models(recipe(model, "images.max_pixels=16384"))
    assert report.warnings == ()
    # 109 tensors of the tied model; 16384 pixels are 16 tokens of 32 x 32.
    assert report.lines[0] == "model folder: Qwen3-VL Thinking, 109 tensors in 1 file"
    assert report.lines[2].startswith("images: at most 16 tokens each, of 1024 of context")


@pytest.mark.parametrize(
    ("folder", "name", "largest"),
    [
        ("thinking", "Qwen3-VL Thinking", 256),
        ("instruct", "Qwen3-VL Instruct", 256),
        ("qwen2_5", "Qwen2.5-VL", 334),  # 262144 // 28 ** 2
    ],
)
def test_a_folder_of_each_family_passes(folder, name, largest, request):
    report = check_models(recipe(request.getfixturevalue(folder)))
    assert warnings_of_folder(report) == []
    assert report.lines[0].startswith(f"model folder: {name}, ")
    assert report.lines[2].startswith(f"images: at most {largest} tokens each, ")


def test_the_tokens_of_prompt_and_tools_are_those_of_the_template(thinking):
    from transformers import AutoTokenizer

    run = recipe(thinking)
    zoom = schema(run.tools.tools["image_zoom_in"].kind_as("image_zoom_in").open("image_zoom_in"))
    messages = [
        {"role": "system", "content": run.task.load().system},
        {"role": "user", "content": ""},
    ]
    tokenizer = AutoTokenizer.from_pretrained(thinking)

    def tokens(tools):
        rendered = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False
        )
        return len(tokenizer.encode(rendered))

    total, of_tools = tokens([zoom]), tokens([zoom]) - tokens(None)
    expected = f"prompt without question: {total} tokens, of them tools: {of_tools}"
    assert check_models(run).lines[1] == expected


def test_weights_in_several_files_with_an_index_pass(broken):
    parts = {}

    def split(tensors):
        parts["second"] = {HEAD: tensors.pop(HEAD)}

    rewrite(broken, split)
    write_zeros(broken / "second.safetensors", parts["second"])
    index = {"weight_map": {HEAD: "second.safetensors", NORM: "model.safetensors"}}
    write(broken / "model.safetensors.index.json", index)
    assert [file.name for file in check_weights(broken).files] == [
        "model.safetensors",
        "second.safetensors",
    ]


# Family, template, tokenizer.


def test_a_folder_of_another_family_is_refused(broken):
    for other in ("qwen3_vl_moe", "qwen3", "llama"):
        change(broken / "config.json", {"model_type": other})
        expected = f"DIR/config.json: model_type '{other}'; what works is {what_works()}"
        assert refused(broken) == expected


def test_a_folder_without_template_is_refused(broken):
    change(broken / "tokenizer_config.json", {"chat_template": None})
    assert refused(broken) == (
        "DIR: no chat template; expected a chat_template.jinja, or `chat_template` in "
        "tokenizer_config.json or chat_template.json"
    )


def test_a_template_that_opens_turns_in_another_way_is_refused(broken):
    write(broken / "chat_template.jinja", "<|im_start|>bot ")
    assert refused(broken) == (
        "DIR: the chat template opens an assistant's turn with '<|im_start|>bot '; expected "
        "'<|im_start|>assistant\\n<think>\\n' (Qwen3-VL Thinking) or "
        "'<|im_start|>assistant\\n' (Qwen3-VL Instruct)"
    )


def test_a_folder_without_tokenizer_is_refused(broken):
    for name in ("tokenizer.json", "vocab.json"):
        (broken / name).unlink()
    expected = "DIR: no tokenizer; expected tokenizer.json or vocab.json and merges.txt"
    assert refused(broken) == expected


def test_a_tokenizer_that_cannot_be_read_is_refused(broken):
    write(broken / "tokenizer.json", '{"version": ')
    assert refused(broken).startswith("DIR: the tokenizer does not load: ")


def test_a_tokenizer_without_a_token_of_the_family_is_refused(qwen2_5, broken):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        template = json.loads((broken / "tokenizer_config.json").read_text())["chat_template"]
        write(broken / name, (qwen2_5 / name).read_text("utf-8"))
    change(broken / "tokenizer_config.json", {"chat_template": template})
    expected = "DIR: the tokenizer has no <think>, </think>; Qwen3-VL Thinking needs it"
    assert refused(broken) == expected


def test_a_tokenizer_longer_than_the_vocabulary_is_refused(broken):
    change(broken / "config.json", {"text_config/vocab_size": 151668})
    shape = ("BF16", [151668, 128])
    rewrite(broken, lambda tensors: tensors.update({EMBEDDING: shape, HEAD: shape}))
    assert refused(broken) == (
        "DIR: the tokenizer has 151669 ids, but vocab_size of config.json is 151668; expected as "
        "many, or at most 1020 more"
    )


# Processor.


def test_a_folder_without_processor_is_refused(broken):
    (broken / "preprocessor_config.json").unlink()
    assert refused(broken) == (
        "DIR: no image processor (expected one of processor_config.json, preprocessor_config.json)"
    )


@pytest.mark.parametrize(
    ("size", "of_model", "value", "expected"),
    [
        ("patch_size", "patch_size", 14, 16),
        ("merge_size", "spatial_merge_size", 4, 2),
        ("temporal_patch_size", "temporal_patch_size", 1, 2),
    ],
)
def test_a_processor_of_other_sizes_is_refused(size, of_model, value, expected, broken):
    change(broken / "preprocessor_config.json", {size: value})
    assert refused(broken) == (
        f"DIR: the image processor's {size} is {value}; expected {expected}, which is "
        f"vision_config.{of_model} of config.json"
    )


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_a_file_that_is_no_json_object_is_refused(name, broken):
    write(broken / name, "{")
    assert refused(broken).startswith(f"DIR/{name}: Expecting property name")
    write(broken / name, "[]")
    assert refused(broken) == f"DIR/{name}: expected an object, found list"
    write(broken / name, "[" * 100_000)
    assert refused(broken).startswith(f"DIR/{name}: maximum recursion depth exceeded")


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
@pytest.mark.parametrize("value", [None, "x", 1, [1]])
def test_a_section_of_the_configuration_that_is_no_object_is_refused(section, value, broken):
    change(broken / "config.json", {section: value})
    assert refused(broken) == f"DIR/config.json: {section} is {value!r}; expected an object"


def test_sizes_of_images_that_are_no_numbers_are_refused(broken):
    change(broken / "preprocessor_config.json", {"size": [1, 2]})
    assert refused(broken).startswith("DIR: the image processor's sizes: TypeError: ")
