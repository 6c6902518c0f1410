"""The policy as the loss sees it: a micro-batch in, log-probabilities of its trained tokens out.

Under ZeRO-3 this module is what the engine wraps, so every gather happens inside its forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from axpo.quick_imports import quick_imports
from learner import attention, buffers, cpu_sums, lora
from learner.batch import MicroBatch
from learner.config import LoraSettings
from learner.head import Head
from rollout_workers.families import Architecture, family_of
from rollout_workers.special_tokens import tokens_of

ATTENTION = {"text_config": attention.NAME, "vision_config": "sdpa"}


class Policy(nn.Module):
    """A vision-language model and the sampling distribution the engine draws from."""

    def __init__(self, model: nn.Module, banned: Sequence[int], temperature: float) -> None:
        """Wrap a model; `banned` are ids of tokens that the engine must not sample."""
        super().__init__()
        self.model = model
        self.head = Head(model.lm_head.weight, banned, temperature)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute the trained tokens of a micro-batch.

        Returns:
            Log-probabilities, shape [M], and entropies in nats, shape [M], both float32. Only the
            former carry a gradient.
        """
        inner = self.model.model
        vision = inner.get_image_features(
            batch.pixel_values, batch.image_grid_thw, return_dict=True
        )
        # Each distinct image is encoded once, then handed to every place that shows it.
        index = batch.image_index.tolist()
        vision.pooler_output = features_at(vision.pooler_output, index)
        # Features that go into deeper layers; not every architecture has them.
        deepstack = getattr(vision, "deepstack_features", None)
        if deepstack is not None:
            vision.deepstack_features = [features_at(layer, index) for layer in deepstack]
        hidden = inner(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            mm_encoder_outputs={"image": vision},
            use_cache=False,
            tree=batch.tree,
            block_mask=batch.block_mask,
        ).last_hidden_state
        return self.head(hidden_at(hidden.flatten(0, 1), batch.positions), batch.targets)


def features_at(images: Sequence[Tensor], index: Sequence[int]) -> list[Tensor]:
    """Return images[i] for each i of an index; the model casts them to its own type.

    An image that is shown more than once is widened, so that its gradient is a float32 sum over its
    places. In bfloat16 it would be rounded after each of them.
    """
    places = Counter(index)
    exact = [image.float() if places[i] > 1 else image for i, image in enumerate(images)]
    return [exact[i] for i in index]


def hidden_at(hidden: Tensor, positions: Tensor) -> Tensor:
    """Return hidden[positions] whose gradient is a float32 sum over equal positions.

    In a tree many rollouts read the last token of their prompt.

    Args:
        hidden: hidden states, shape [T, H].
        positions: shape [M].
    """
    if hidden.dtype == torch.float32:
        return hidden[positions]
    distinct, place = positions.unique(return_inverse=True)
    return hidden[distinct].float()[place].to(hidden.dtype)


def load_policy(
    folder: str,
    zero_config: dict[str, Any],
    *,
    temperature: float,
    checkpointing: bool,
    adapters: LoraSettings | None = None,
) -> Policy:
    """Load a model partitioned over the ranks, one tensor whole at a time. Collective.

    Args:
        folder: a Hugging Face folder of one of the model families.
        zero_config: DeepSpeed's configuration.
        temperature: of the rollouts' sampling.
        checkpointing: recompute activations in the backward pass.
        adapters: put on the model once it is loaded; None: all parameters train.

    Raises:
        FileNotFoundError: the folder has no safetensors.
        UnknownFamily: the folder is of no family that works.
        ValueError: the safetensors lack a parameter; it is named.
    """
    architecture = family_of(folder).architecture
    with quick_imports():
        import deepspeed
        import transformers
        from transformers.initialization import no_init_weights

        attention.register()
        config = transformers.AutoConfig.from_pretrained(folder)
        # Imports the model's own module.
        model_class = getattr(transformers, architecture.model_class)
    dtype = torch.bfloat16 if "bf16" in zero_config else torch.float32
    # zero.Init gets no `dtype`: DeepSpeed 0.19.8 reads dtype=float32 as bfloat16 on CPU. From its
    # configuration it takes the right one.
    with deepspeed.zero.Init(config_dict_or_path=zero_config), no_init_weights():
        model = model_class._from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    # Out of zero.Init, which gave them the digits of the weights' type.
    buffers.restore(model)
    cpu_sums.use_float32_sums(model)
    model.tie_weights()
    _load_weights(model, folder, architecture)
    if adapters is not None:
        lora.inject(model, adapters)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # The very ids that the engine bans.
    return Policy(model, tokens_of(folder).banned, temperature)


def read_safetensors(folder: str) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of every tensor in a folder, in the same order on every rank.

    Raises:
        FileNotFoundError: the folder has no safetensors.
    """
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"model folder {folder} has no *.safetensors")
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in sorted(weights.keys()):
                yield name, weights.get_tensor(name)


def _load_weights(model: nn.Module, folder: str, architecture: Architecture) -> None:
    """Copy a folder's tensors into the partitioned parameters. Collective."""
    import deepspeed

    # A tied head is no parameter of its own here, and its tensor is passed over.
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for stored, tensor in read_safetensors(folder):
        name = architecture.parameter_name(stored)
        if name in parameters:
            with deepspeed.zero.GatheredParameters([parameters[name]], modifier_rank=0):
                # What this rank writes, the others get their parts of when the block ends.
                if torch.distributed.get_rank() == 0:
                    parameters[name].data.copy_(tensor)
            missing.discard(name)
    if missing:
        raise ValueError(f"model folder {folder} holds no weights for {sorted(missing)}")
