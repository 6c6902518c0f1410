"""The random embedded model: the same texts and seed give the same files, in Qwen's format."""

import hashlib

from axpo.sft.embedded import MARKUP, SPECIAL, VOCABULARY, build, build_tokenizer

TEXTS = ["What is the red number?", "<think>I zoom in.</think>", "1234567890"] * 50


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_the_same_seed_gives_the_same_files(tmp_path):
    one, two, other = (
        digests(build(tmp_path / name, TEXTS, seed))
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert one == two
    assert set(one) >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert one["model.safetensors"] != other["model.safetensors"]
    assert one["tokenizer.json"] == other["tokenizer.json"]


def test_markup_is_one_token_and_unseen_text_is_spelled_in_bytes():
    tokenizer = build_tokenizer(TEXTS)
    assert len(tokenizer) <= VOCABULARY
    for token in (*SPECIAL, *MARKUP):
        assert len(tokenizer.encode(token)) == 1
    unseen = "Zürich 東京"
    assert tokenizer.decode(tokenizer.encode(unseen)) == unseen
    assert (
        tokenizer.decode(tokenizer.encode("</think> 7"), skip_special_tokens=True) == "</think> 7"
    )
