"""The policy as the loss sees it: a micro-batch in, the log-probabilities of its trained tokens out.

Under ZeRO-3 this module is what the engine wraps, so every gather happens inside its forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learner import attention, lora
from learner.batch import MicroBatch
from learner.config import LoraSettings
from learner.head import Head

ATTENTION = {"text_config": attention.NAME, "vision_config": "sdpa"}


class Policy(nn.Module):
    """A Qwen3-VL and the sampling distribution the engine draws from."""

    def __init__(self, model: nn.Module, banned: Sequence[int], temperature: float) -> None:
        super().__init__()
        self.model = model
        self.head = Head(model.lm_head.weight, banned, temperature)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """[M] log-probabilities and [M] entropies of the trained tokens, float32. Only the former carry a gradient."""
        inner = self.model.model
        vision = inner.get_image_features(
            batch.pixel_values, batch.image_grid_thw, return_dict=True
        )
        # Each distinct image is encoded once, then handed to every place that shows it.
        index = batch.image_index.tolist()
        vision.pooler_output = [vision.pooler_output[i] for i in index]
        vision.deepstack_features = [
            [layer[i] for i in index] for layer in vision.deepstack_features
        ]
        device = batch.input_ids.device
        hidden = inner(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            mm_encoder_outputs={"image": vision},
            use_cache=False,
            tree=batch.tree,
            block_mask=batch.tree.block_mask(device)
            if batch.tree is not None and device.type == "cuda"
            else None,
        ).last_hidden_state
        return self.head(hidden.flatten(0, 1)[batch.positions], batch.targets)


def load_policy(
    folder: str,
    zero_config: dict[str, Any],
    *,
    temperature: float,
    checkpointing: bool,
    adapters: LoraSettings | None = None,
) -> Policy:
    """The model of a Hugging Face folder, partitioned over the ranks while it loads (one tensor whole at a time), and its adapters.

    Collective. Raises FileNotFoundError without safetensors, ValueError naming the parameters that they do not hold.
    """
    import deepspeed
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.initialization import no_init_weights

    attention.register()
    config = Qwen3VLConfig.from_pretrained(folder)
    dtype = torch.bfloat16 if "bf16" in zero_config else torch.float32
    # Without `dtype`: DeepSpeed 0.19.8 reads dtype=float32 as bfloat16 on CPU; from its configuration it takes the right one.
    with deepspeed.zero.Init(config_dict_or_path=zero_config), no_init_weights():
        model = Qwen3VLForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation=ATTENTION
        )
    model.tie_weights()
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for name, tensor in read_safetensors(folder):
        if name in parameters:
            with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0):
                if torch.distributed.get_rank() == 0:
                    parameters[name].data.copy_(tensor)
            missing.discard(name)
    if missing:
        raise ValueError(f"model folder {folder} holds no weights for {sorted(missing)}")
    if adapters is not None:
        lora.inject(model, adapters)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    banned = (
        config.vision_start_token_id,
        config.vision_end_token_id,
        config.image_token_id,
        config.video_token_id,
    )
    return Policy(model, banned, temperature)


def read_safetensors(folder: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every tensor in the folder's safetensors files, in the same order on every rank."""
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"model folder {folder} has no *.safetensors")
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in sorted(weights.keys()):
                yield name, weights.get_tensor(name)
