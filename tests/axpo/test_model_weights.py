"""Weights of model folders: one thing wrong in each, and the line that says so."""

import re
import struct

import pytest

from axpo.model_folder.weights import check_weights
from tests.axpo.model_folders import (
    EMBEDDED,
    HEAD,
    NORM,
    change,
    copy,
    refused,
    rewrite,
    write,
    write_zeros,
)


@pytest.fixture
def broken(thinking, tmp_path):
    """Return a copy of a sound folder, for a test to break."""
    return copy(thinking, tmp_path / "model")


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
