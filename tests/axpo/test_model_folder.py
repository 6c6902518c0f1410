"""Model folders that work, and broken ones: one thing wrong in each, and the line that says so."""

import json
import os
import re
import struct
from pathlib import Path

import pytest
from PIL import Image

from axpo import cli
from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.model_folder import check_models
from axpo.model_folder.check import folder_of
from axpo.model_folder.prompt import schema_of
from axpo.model_folder.weights import check_weights
from rollout_workers.families import what_works
from tool_server.config import ToolConfig
from tool_server.server import schema

DEMO = "deploy/recipes/demo.yaml"
EMBEDDED = ("axpo/models/qwen3-vl-tiny", "axpo/models/qwen3-vl-tiny-mixed")
HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
NORM = "model.language_model.norm.weight"


def recipe(model, *overrides):
    images = "images.max_pixels=262144"  # 256 tokens of Qwen3-VL: one image fits the context
    return load_recipe(DEMO, [f"model={model}", images, *overrides])


def refused(model, *overrides):
    """Return the line that refuses a model, with its folder as DIR."""
    with pytest.raises(AxpoError) as raised:
        check_models(recipe(model, *overrides))
    line = str(raised.value)
    assert "\n" not in line
    return line.replace(str(model), "DIR")


def warnings_of_folder(report):
    """Return the warnings without the task's: the demo's scene is small beside real limits."""
    return [warning for warning in report.warnings if not warning.startswith("task.")]


def copy(source, folder):
    """Link every file of a folder, so that a change is made by `write` or `unlink` alone."""
    folder.mkdir()
    for file in source.iterdir():
        os.link(file, folder / file.name)
    return folder


def write(file, value):
    """Replace a file: a link to the source's file is cut, the source stays as it is."""
    file.unlink(missing_ok=True)
    if isinstance(value, bytes):
        file.write_bytes(value)
    else:
        file.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")


def change(file, changes):
    """Change entries of a JSON file, given by path."""
    content = json.loads(file.read_text("utf-8"))
    for path, value in changes.items():
        *sections, key = path.split("/")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    write(file, content)


def rewrite(folder, edit):
    """Change the tensors of a folder: name -> (type, shape). Their values become zeros."""
    file = folder / "model.safetensors"
    with file.open("rb") as opened:
        header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    header.pop("__metadata__", None)
    tensors = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    edit(tensors)
    write_zeros(file, tensors)


def write_zeros(file, tensors):
    """Write a safetensors file by the format's definition, as a hole on the disk."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start = end
        size = {"F32": 4, "BF16": 2, "I32": 4}[dtype]
        for side in shape:
            size *= side
        end += size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    write(file, struct.pack("<Q", len(encoded)) + encoded)
    os.truncate(file, 8 + len(encoded) + end)


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


# Weights.


def test_a_folder_without_weights_is_refused(broken):
    (broken / "model.safetensors").unlink()
    assert refused(broken) == "DIR: no weights; expected *.safetensors"


def test_an_index_that_names_missing_files_is_refused(broken):
    names = [f"part-{number}.safetensors" for number in range(5)]
    index = {"weight_map": dict(zip("abcde", names, strict=True))}
    write(broken / "model.safetensors.index.json", index)
    assert refused(broken) == (
        "DIR/model.safetensors.index.json: names part-0.safetensors, part-1.safetensors, "
        "part-2.safetensors and 2 more, not in the folder"
    )


def test_a_tensor_in_two_files_is_refused(broken):
    write_zeros(broken / "part.safetensors", {NORM: ("BF16", [128])})
    assert refused(broken) == f"DIR/part.safetensors: holds {NORM}, as model.safetensors does"


def test_a_file_that_was_cut_short_is_refused(broken):
    file = broken / "model.safetensors"
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(1 << 20)
    write(file, start)
    expected = f"DIR/model.safetensors: 1048576 bytes; expected {size} by its header (cut short?)"
    assert refused(broken) == expected
    # In the middle of the header.
    write(file, start[:100])
    length = 8 + struct.unpack("<Q", start[:8])[0]
    assert refused(broken) == (
        f"DIR/model.safetensors: 100 bytes; expected {length} of header alone (cut short?)"
    )


@pytest.mark.parametrize("content", [b"\0" * 100, b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_that_is_no_safetensors_is_refused(content, broken):
    write(broken / "model.safetensors", content)
    assert refused(broken) == (
        "DIR/model.safetensors: its header cannot be read; expected safetensors"
    )


def test_a_pointer_of_git_lfs_is_refused(broken):
    write(
        broken / "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    expected = "DIR/model.safetensors: a Git LFS pointer; expected the weights (`git lfs pull`)"
    assert refused(broken) == expected


def test_a_tensor_of_another_shape_is_refused(broken):
    rewrite(broken, lambda tensors: tensors.update({NORM: ("BF16", [64])}))
    expected = f"DIR/model.safetensors: {NORM} has shape [64]; expected [128] by config.json"
    assert refused(broken) == expected


def test_weights_of_another_shape_than_the_configuration_says_are_refused(broken):
    change(broken / "config.json", {"text_config/intermediate_size": 512})
    assert re.fullmatch(
        r"DIR/model.safetensors: model.language_model.layers.0.mlp.\w+.weight has shape "
        r"\[(384, 128|128, 384)\]; expected \[(512, 128|128, 512)\] by config.json",
        refused(broken),
    )


def test_missing_tensors_are_refused(broken):
    rewrite(broken, lambda tensors: (tensors.pop(HEAD), tensors.pop(NORM)))
    assert refused(broken) == f"DIR: no weights for {NORM}, {HEAD}; expected by config.json"


def test_unexpected_tensors_are_refused(broken):
    extra = {f"model.extra.{number}": ("BF16", [1]) for number in range(5)}
    rewrite(broken, lambda tensors: tensors.update(extra))
    assert refused(broken) == (
        "DIR/model.safetensors: model.extra.0, model.extra.1, model.extra.2 and 2 more; not in "
        "the model of config.json"
    )


def test_a_tied_head_may_be_in_the_file_or_not(broken):
    tied = {"tie_word_embeddings": True, "text_config/tie_word_embeddings": True}
    change(broken / "config.json", tied)
    assert HEAD in check_weights(broken).tensors
    rewrite(broken, lambda tensors: tensors.pop(HEAD))
    assert HEAD not in check_weights(broken).tensors


def test_quantized_weights_are_refused(broken):
    change(broken / "config.json", {"quantization_config": {"quant_method": "fp8"}})
    assert refused(broken) == (
        "DIR/config.json: quantization_config (fp8); expected the weights that it was made from, "
        "in F32 or BF16 or F16"
    )


def test_weights_of_another_type_are_refused(broken):
    rewrite(broken, lambda tensors: tensors.update({NORM: ("I32", [128])}))
    expected = f"DIR/model.safetensors: {NORM} has type I32; expected F32 or BF16 or F16"
    assert refused(broken) == expected


def test_a_reference_with_another_vocabulary_is_refused(thinking):
    line = refused(thinking, f"reference={EMBEDDED[0]}", "learner.kl_beta=0.1")
    assert line == f"reference='{EMBEDDED[0]}': vocab_size 768; expected 151936, as DIR has"


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


# Names of the hub.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the folder that the hub's cache has for `a/model`; there is no network."""
    import httpx
    import huggingface_hub.constants

    def offline(*arguments, **options):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr("httpx.get", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub/models--a--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("0123")
    (model / "snapshots").mkdir()
    return model / "snapshots/0123"


def test_a_name_in_the_cache_is_checked_whole(thinking, cache):
    copy(thinking, cache)
    assert folder_of("a/model") == cache
    assert warnings_of_folder(check_models(recipe("a/model"))) == []
    (cache / "preprocessor_config.json").unlink()
    assert refused("a/model").startswith(f"{cache}: no image processor")


def test_of_a_name_without_weights_in_the_cache_the_configuration_is_checked(thinking, cache):
    copy(thinking, cache)
    (cache / "model.safetensors").unlink()
    report = check_models(recipe("a/model"))
    assert report.lines == ("model of the hub: qwen3_vl",)
    assert report.warnings == (
        "not checked: tokenizer, chat template, processor and weights of a/model (not in the "
        "local cache; `hf download a/model` puts them there)",
    )
    change(cache / "config.json", {"text_config/max_position_embeddings": 1000})
    assert refused("a/model") == (
        "rollout.max_context_tokens=1024: must be at most 1000, which is max_position_embeddings "
        "of DIR, config.json"
    )
    change(cache / "config.json", {"model_type": "qwen3"})
    expected = f"DIR, config.json: model_type 'qwen3'; what works is {what_works()}"
    assert refused("a/model") == expected


@pytest.mark.parametrize(
    ("model", "positions"),
    [("Qwen/Qwen3-VL-8B-Thinking", 262_144), ("Qwen/Qwen2.5-VL-3B-Instruct", 128_000)],
)
def test_the_context_of_a_known_name_is_checked_without_network(model, positions, cache):
    assert check_models(recipe(model, f"rollout.max_context_tokens={positions}")).lines
    line = refused(model, f"rollout.max_context_tokens={positions + 1}")
    assert line == (
        f"rollout.max_context_tokens={positions + 1}: must be at most {positions}, which is "
        "max_position_embeddings of DIR, config.json"
    )


def test_of_a_name_without_network_nothing_is_checked_and_that_is_said(cache):
    report = check_models(recipe("b/model"))
    assert report.lines == ()
    assert report.warnings == (
        "nothing of the model was checked (b/model: not in the local cache, and the hub does not "
        "give its config.json)",
    )


# The commands.


@pytest.mark.parametrize(
    "command",
    [
        ["check", DEMO],
        ["train", DEMO],
        ["train", DEMO, "--rollouts-only"],
        ["train", DEMO, "--replay", "nowhere"],
        ["sft", DEMO],
        ["eval", DEMO],
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_broken_folder(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("axpo.session.ray_session", None)  # nothing starts
    model = copy(Path(EMBEDDED[0]).absolute(), tmp_path / "model")
    (model / "processor_config.json").unlink()
    settings = ["--set", f"model={model}", "--set", f"logging.root={tmp_path / 'runs'}"]
    monkeypatch.setattr("sys.argv", ["axpo", *command, *settings])
    with pytest.raises(SystemExit):
        cli.main()
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"error {model}: no image processor (expected one of ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["check", "eval", "sft"])
def test_every_command_names_questions_that_do_not_fit_before_it_starts(
    command, tmp_path, monkeypatch, capsys
):
    def start(*arguments, **options):
        raise AxpoError("started")

    monkeypatch.setattr("axpo.session.ray_session", start)
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    # 1024 tokens: 289 of every prompt, 4 of the picture, one must be free. " the" is one token,
    # and "the" at the beginning two.
    rows = [{"question": " the" * words, "images": "a.png", "answer": "7"} for words in (729, 730)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = f"task={{kind: dataset, train: {data}, held_out: {data}, system: null}}"
    monkeypatch.setattr("sys.argv", ["axpo", command, DEMO, "--set", task])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    assert printed.out.count(f"set aside in a run: {data}, row 2: 4 tokens of images and") == 2
    assert "row 1:" not in printed.out
    assert printed.err.endswith("" if command == "check" else "error started\n")


def test_check_prints_what_it_found(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["axpo", "check", DEMO])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    said = capsys.readouterr().out
    assert "   prompt without question: 306 tokens, of them tools: 276\n" in said
    assert "   model folder: Qwen3-VL Thinking, 109 tensors in 1 file\n" in said
