"""Model folders that are real in everything but weights, width and depth.

Real: tokenizer, chat template, processor, and config.json in the form that the hub has. Made up:
random weights, two layers, a narrow width. `speaking` turns the weights into a bigram model, so
that samples are well-formed turns: about half call the zoom, the others answer in a box.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tests.real.vocabulary import CONTROL, FIRST_ADDED, added, bpe, tokenizer_json

Family = Literal["thinking", "instruct", "qwen2_5"]
TemplateFile = Literal["tokenizer_config.json", "chat_template.json", "chat_template.jinja", "none"]


@dataclass(frozen=True)
class Spec:
    """Which folder to build."""

    family: Family = "thinking"
    tied: bool = True
    template_in: TemplateFile = "tokenizer_config.json"
    hidden: int = 256
    layers: int = 2
    seed: int = 0

    @property
    def thinks(self) -> bool:
        """Whether the tokenizer has Qwen3's think tokens (the Instruct model's has them too)."""
        return self.family != "qwen2_5"


def build(folder: Path, spec: Spec = Spec()) -> Path:
    """Write a model folder and return it."""
    folder.mkdir(parents=True)
    write_tokenizer(folder, spec)
    _write(folder / "preprocessor_config.json", preprocessor(spec))
    _write(folder / "generation_config.json", GENERATION)
    _write(folder / "config.json", config_of(spec))
    _write_weights(folder, spec)
    # As the hub has them, not as transformers writes them.
    _write(folder / "config.json", config_of(spec))
    _write(folder / "generation_config.json", GENERATION)
    return folder


def template_of(family: Family) -> str:
    """Return a chat template: Instruct and Qwen2.5 as TRL ships them, Thinking as written here."""
    if family == "thinking":
        return Path(__file__).with_name("thinking.jinja").read_text(encoding="utf-8")
    package = importlib.util.find_spec("trl")
    assert package is not None
    assert package.origin is not None
    name = {"instruct": "qwen3_vl.jinja", "qwen2_5": "qwen2_5_vl.jinja"}[family]
    return (Path(package.origin).parent / "chat_templates" / name).read_text(encoding="utf-8")


def write_tokenizer(folder: Path, spec: Spec) -> None:
    """Write the tokenizer's files and the chat template."""
    vocabulary, merges = bpe()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = [f"{left} {right}\n" for left, right in merges]
    (folder / "merges.txt").write_text("".join(lines), "utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json(thinks=spec.thinks), "utf-8")
    template = template_of(spec.family)
    own = template if spec.template_in == "tokenizer_config.json" else None
    _write(folder / "tokenizer_config.json", _tokenizer_config(own, thinks=spec.thinks))
    if spec.template_in == "chat_template.jinja":
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    if spec.template_in == "chat_template.json":
        _write(folder / "chat_template.json", {"chat_template": template})


def speaking(folder: Path, scale: float = 20.0) -> Path:
    """Make the weights of an untied folder a bigram model that writes well-formed turns.

    Embeddings become normals of mean square 1, as the last norm leaves them, and the head's row of
    a token the embeddings of the tokens that come before it: a token that may follow has a logit
    of `scale`. MLPs and the vision tower stay random. So does attention, but its scores are sharp
    and its outputs large enough that a token in another place gives other logits.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    thinks = "<think>" in template_of_folder(folder)
    file = folder / "model.safetensors"
    weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    embedding = next(name for name in weights if name.endswith("embed_tokens.weight"))
    head = next(name for name in weights if name.endswith("lm_head.weight"))
    generator = torch.Generator().manual_seed(1)
    shape = weights[embedding].shape
    normals = torch.randn(shape, generator=generator)
    weights[embedding] = normals / normals.square().mean(-1, keepdim=True).sqrt()
    rows = torch.randn(shape, generator=generator) * 0.01
    for before, after in _bigrams(tokenizer, thinks=thinks):
        rows[after] += scale / shape[1] * weights[embedding][before]
    weights[head] = rows
    _attend(weights)
    halved = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(halved, file, {"format": "pt"})
    return folder


def _attend(weights: dict[str, Any]) -> None:
    """Make the language model's attention matter.

    As transformers draws it, it hardly moves the logits, and wrong positions do not show.
    """
    # Qwen3's queries and keys are normed, and it has four heads here; Qwen2.5's has one.
    normed = any(name.endswith("q_norm.weight") for name in weights)
    for name, weight in weights.items():
        if "visual" in name:
            continue
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.fill_(2.0)
        if not normed and name.endswith(("q_proj.weight", "k_proj.weight")):
            weight *= 6
        if name.endswith(("v_proj.weight", "o_proj.weight")):
            weight *= 2 if normed else 3


def template_of_folder(folder: Path) -> str:
    """Return the chat template of a folder, from whichever file has it."""
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text("utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = folder / name
        found = json.loads(file.read_text("utf-8")) if file.exists() else {}
        if "chat_template" in found:
            return str(found["chat_template"])
    raise FileNotFoundError(f"{folder}: no chat template")


# Two turns as lists of words that are one token each. Every word follows exactly one other one.
THOUGHT_CALL = ["I", " zoom", " in", ".\n", "</think>", "\n\n"]
CALL = [
    *("<tool_call>", '{"', "name", '":"', "image", "_zoom", "_in", '","', "arguments", '":{"'),
    *("bbox", "_", "2", "d", '":', "[", "0", ",", "1", " ,", "9", ",\n", "8", "]}", "}"),
    *("</tool_call>", "<|im_end|>"),
]
THOUGHT_ANSWER = ["See", " it", "\n\n\n", "</think>"]
ANSWER = [" The", " answer", " is", " \\", "boxed", "{", "7", "}.", "<|im_end|>"]


def _bigrams(tokenizer: Any, *, thinks: bool) -> set[tuple[int, int]]:
    turns = [[*THOUGHT_CALL, *CALL], [*THOUGHT_ANSWER, *ANSWER]] if thinks else [CALL, ANSWER]
    pairs = set()
    for words in turns:
        # A turn opens after the template's newline.
        ids = [_one_token(tokenizer, word) for word in ["\n", *words]]
        pairs |= set(pairwise(ids))
    return pairs


def _one_token(tokenizer: Any, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False)
    assert len(ids) == 1, (word, ids)
    return int(ids[0])


GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "top_p": 0.95,
    "top_k": 20,
    "temperature": 1.0,
    "transformers_version": "4.57.0",
}


def preprocessor(spec: Spec) -> dict[str, Any]:
    """Return preprocessor_config.json."""
    if spec.family == "qwen2_5":
        return {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        }
    return {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
    }


def config_of(spec: Spec) -> dict[str, Any]:
    """Return config.json as the hub has it."""
    return _qwen2_5_config(spec) if spec.family == "qwen2_5" else _qwen3_config(spec)


def _qwen3_config(spec: Spec) -> dict[str, Any]:
    rope = {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 3 * spec.hidden,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 4,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": rope,
        "rope_theta": 5000000,
        "tie_word_embeddings": spec.tied,
        "use_cache": True,
        "vocab_size": 151936,
    }
    vision = {
        "deepstack_visual_indexes": [0, 1, 2],
        "depth": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 128,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "model_type": "qwen3_vl",
        "num_heads": 2,
        "num_position_embeddings": 2304,
        "out_hidden_size": spec.hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": spec.tied,
        "transformers_version": "4.57.0",
        "video_token_id": 151656,
        "vision_config": vision,
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


def _qwen2_5_config(spec: Spec) -> dict[str, Any]:
    vision = {
        "depth": 4,
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": spec.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 3 * spec.hidden,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": spec.hidden // 128,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": spec.tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": vision,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 151936,
    }


def _tokenizer_config(template: str | None, *, thinks: bool) -> dict[str, Any]:
    decoder = {
        str(FIRST_ADDED + place): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in CONTROL,
        }
        for place, token in enumerate(added(thinks=thinks))
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(CONTROL[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return config | ({"chat_template": template} if template else {})


def _write_weights(folder: Path, spec: Spec) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(spec.seed)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
