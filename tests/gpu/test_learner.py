"""Tier 1, the learner: one rank on one GPU, without Ray and without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from learner import buffers, lora, manifest
from learner.config import LoraSettings
from learner.credit import TrainItem
from learner.weights import full_shape, gathered
from tests.gpu.device import CUDA, reserved, timed, with_peak
from tests.gpu.figures import Figures
from tests.gpu.model import build, one_rank
from tests.learner.multimodal import forked_items, make_items, plain_torch_logprobs

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]
FORMS: dict[str, dict[str, Any]] = {
    "tree": {},
    "packed": {"layout": "packed"},
    "padded": {"layout": "padded"},
    "activations_kept": {"gradient_checkpointing": False},
    "optimizer_offloaded": {"offload_optimizer": True},
    "lora": {"lora": LoraSettings(rank=8, alpha=16)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("gpu") / "model")


@pytest.fixture(scope="module")
def items(folder: str) -> list[TrainItem]:
    return [*make_items(folder, 8), *forked_items(folder)]


def test_frequencies_are_float32_whatever_the_weights_are(folder: str) -> None:
    with one_rank(folder) as rank:
        buffers.check(rank.engine.module.model)
        parameters = {parameter.dtype for parameter in rank.engine.module.parameters()}
        assert parameters == {torch.bfloat16}


def test_the_gap_to_plain_hugging_face_in_bfloat16_is_that_of_rounding(
    folder: str, items: list[TrainItem], figures: Figures
) -> None:
    with one_rank(folder) as rank:
        mine = dict(rank.logprobs(items))
        device = rank.engine.device
    theirs = plain_torch_logprobs(folder, items, torch.bfloat16, device)
    gaps = [np.abs(mine[i][item.mask] - theirs[i]) for i, item in enumerate(items)]
    gap = np.concatenate(gaps)
    figures.add("gap_to_hugging_face", mean_nats=gap.mean(), max_nats=gap.max())
    assert gap.mean() < 0.02
    assert gap.max() < 0.5


@pytest.fixture(scope="module")
def of_tree() -> dict[str, float]:
    """Hold the metrics of the update in its usual form, which runs first."""
    return {}


@pytest.mark.parametrize("form", FORMS)
def test_an_update_is_the_same_in_every_form(
    form: str,
    folder: str,
    items: list[TrainItem],
    of_tree: dict[str, float],
    figures: Figures,
) -> None:
    if form == "optimizer_offloaded" and not CUDA:
        pytest.skip("compiles DeepSpeed's optimizer for minutes; tests/learner has it")
    with one_rank(folder, **FORMS[form]) as rank:
        # The first one compiles.
        metrics = rank.update(items)
        (again, seconds), gib = with_peak(lambda: timed(lambda: rank.update(items)))
        figures.add(
            f"update_{form}",
            loss=metrics["loss"],
            grad_norm=metrics["grad_norm"],
            tokens_per_s=again["computed_tokens"] / seconds,
            peak_gib=gib,
        )
        assert metrics["skipped"] == again["skipped"] == 0
        sums = rank.engine.optimizer.gradient_accumulation_dtype
        assert sums == torch.float32
    if form == "tree":
        of_tree.update(metrics)
    elif form != "lora" and of_tree:
        assert metrics["loss"] == pytest.approx(of_tree["loss"], abs=2e-2)
        assert metrics["grad_norm"] == pytest.approx(of_tree["grad_norm"], rel=5e-2)


def test_a_checkpoint_restores_the_rank(
    folder: str, items: list[TrainItem], tmp_path: Path, figures: Figures
) -> None:
    target = tmp_path / "one"
    with one_rank(folder) as rank:
        rank.update(items)
        manifest.begin(target)
        _, saving = timed(lambda: rank.save(str(target), None))
        after = rank.update(items)["grad_norm"]
        _, loading = timed(lambda: rank.load(str(target), 1))
        assert rank.update(items)["grad_norm"] == pytest.approx(after, rel=1e-2)
        figures.add("checkpoint", save_s=saving, load_s=loading)


def test_a_rank_gives_its_memory_away_and_takes_it_back(
    folder: str, items: list[TrainItem], figures: Figures
) -> None:
    with one_rank(folder, kl_beta=1e-3) as rank:
        rank.release_memory()
        floor = reserved()
        rank.reclaim_memory()
        before = rank.update(items)
        training = reserved()
        before_bits = [t.clone() for t in partitions(rank)]
        _, releasing = timed(rank.release_memory)
        released = reserved()
        _, reclaiming = timed(rank.reclaim_memory)
        for found, right in zip(partitions(rank), before_bits, strict=True):
            assert torch.equal(found, right)
        assert rank.update(items)["skipped"] == before["skipped"] == 0
        figures.add(
            "memory_given_away",
            floor_gib=floor,
            training_gib=training,
            released_gib=released,
            release_s=releasing,
            reclaim_s=reclaiming,
        )
        assert released <= 1.15 * floor + 0.1


def partitions(rank: Any) -> list[torch.Tensor]:
    return [parameter.ds_tensor.data for parameter in rank.engine.module.parameters()]


def test_updates_repeat_to_the_bit_with_the_recipes_switch(
    folder: str, items: list[TrainItem]
) -> None:
    found = []
    try:
        for _ in range(2):
            with one_rank(folder, deterministic=True) as rank:
                metrics = [rank.update(items) for _ in range(2)]
                found.append([(m["loss"], m["grad_norm"]) for m in metrics])
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0] == found[1]


def test_the_ranks_group_is_the_one_of_the_device(folder: str, items: list[TrainItem]) -> None:
    with one_rank(folder):
        assert dist.get_backend() == ("nccl" if CUDA else "gloo")


def test_what_is_sent_agrees_with_what_is_announced(folder: str, figures: Figures) -> None:
    with one_rank(folder) as rank:
        model = rank.engine.module.model
        announced = [(name, full_shape(p)) for name, p in lora.exported(model)]

        def sent() -> list[tuple[str, tuple[int, ...]]]:
            shapes = []
            for bucket in gathered(model, 1 << 28):
                shapes += [(name, tuple(tensor.shape)) for name, tensor in bucket]
            return shapes

        found, seconds = timed(sent)
        assert found == announced
        figures.add("gather_all_weights", seconds=seconds)
