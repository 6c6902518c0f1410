"""The tokenizer of a folder, without AutoTokenizer's imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from rollout_workers.tokenizer import load_tokenizer

TINY = "axpo/models/qwen3-vl-tiny"
TEXTS = (
    "Which digit? <think>7</think> <tool_call>",
    "naïve — 数字 123\r\n\tx  y",
    "<|im_start|>user\n<|image_pad|>",
)


@pytest.mark.parametrize("folder", ["tiny", "thinking", "instruct", "qwen2_5"])
def test_it_is_the_one_that_auto_tokenizer_gives(folder, request):
    from transformers import AutoTokenizer

    path = TINY if folder == "tiny" else str(request.getfixturevalue(folder))
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


def test_another_class_is_left_to_auto_tokenizer(tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    assert type(load_tokenizer(folder)).__name__ != "Qwen2Tokenizer"
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(TINY).get_vocab()


def test_it_imports_neither_torch_nor_scikit_learn():
    code = (
        "import sys; from rollout_workers.tokenizer import load_tokenizer; "
        f"load_tokenizer('{TINY}'); print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr
