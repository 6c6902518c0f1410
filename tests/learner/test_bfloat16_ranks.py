"""Real ZeRO-3 ranks in bfloat16: against float32, and their sums of gradients against float64."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from benchmarks.bench_bf16 import kl_by_length
from learner.config import LearnerConfig, RankSettings, Serving
from learner.credit import TrainItem
from tests.learner.multimodal import make_items

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
EMBEDDED = "axpo/models/qwen3-vl-tiny"
CONFIG = LearnerConfig(ranks=1, dtype="bfloat16", kl_beta=0.0, lr=1e-3, layout="packed")
MICRO_BATCHES = 60


def attentive(folder: Path, target: Path) -> str:
    """Copy a folder and enlarge what its attention adds.

    A text is no turn that the folder writes: of its tokens only attention moves the logits.
    """
    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    weights = load_file(file)
    # Qwen3's queries and keys are normed, and it has four heads here; Qwen2.5's has one.
    larger = 2 if any(name.endswith("q_norm.weight") for name in weights) else 4
    for name, weight in weights.items():
        if "visual" not in name and name.endswith(("v_proj.weight", "o_proj.weight")):
            weights[name] = larger * weight
    save_file(weights, file, {"format": "pt"})
    return str(target)


@pytest.mark.parametrize(
    "family",
    [
        "embedded",
        # 18 s of computing each, most of it for a vocabulary of 151,936.
        pytest.param("thinking", marks=pytest.mark.slow),
        pytest.param("qwen2_5", marks=pytest.mark.slow),
    ],
)
def test_the_gap_to_float32_does_not_grow_with_the_length(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With frequencies in bfloat16 it is 1.2e-3, 3.2e-3 and 1.3e-4 at 3,000 tokens."""
    model = EMBEDDED
    if family != "embedded":
        model = attentive(request.getfixturevalue(family), tmp_path / "model")
    by_length = kl_by_length(model, positions=64)
    print(f"\nKL to float32: {by_length}")
    assert set(by_length) == {128, 512, 1024, 3000}
    assert max(by_length.values()) <= 3e-4
    # Flat: with frequencies in bfloat16 the last is 4, 270 and 70 times the first.
    assert by_length[3000] <= 3 * by_length[128]


def settings(config: LearnerConfig, rank: int, port: int) -> RankSettings:
    return RankSettings(EMBEDDED, EMBEDDED, config, Serving(), 0, rank, "127.0.0.1", port)


class WatchedRank:
    """A rank that compares the gradients DeepSpeed has summed with sums in float64."""

    def __init__(self, settings: RankSettings) -> None:
        from learner.rank import LearnerRank

        self.rank = LearnerRank(settings)
        self.parameters = dict(self.rank.engine.module.model.named_parameters())
        self.own: dict[str, torch.Tensor] = {}  # this rank's gradients, summed in float64
        self.errors: dict[str, float] = {}
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient, name=name: self._add(name, gradient))
        self._step = self.rank.engine.step
        self.rank.engine.step = self._compare_and_step

    def update(self, items: list[TrainItem]) -> tuple[float, dict[str, float]]:
        """Return the micro-batches of an update, and |summed - exact| / |exact| by parameter."""
        metrics = self.rank.update(items)
        return metrics["micro_steps"], self.errors

    def types(self) -> dict[str, set[str]]:
        """Return the types of what DeepSpeed keeps and adds up."""
        from deepspeed.runtime.zero.utils import get_norm_dtype

        optimizer = self.rank.engine.optimizer
        weights = optimizer.fp32_partitioned_groups_flat
        states = [state for w in weights for state in optimizer.optimizer.state[w].values()]
        return {
            "parameters": {str(parameter.dtype) for parameter in self.parameters.values()},
            "summed gradients": {str(optimizer.grad_partitions_flat_buffer.dtype)},
            "sent gradients": {
                str(bucket.buffer.dtype) for bucket in optimizer.ipg_buckets.values()
            },
            "weights of the optimizer": {str(weight.dtype) for weight in weights},
            "moments": {str(state.dtype) for state in states if state.numel() > 1},
            "gradient norm": {str(get_norm_dtype())},
            "buffers": {str(b.dtype) for b in self.rank.engine.module.buffers()},
        }

    def _add(self, name: str, gradient: torch.Tensor) -> None:
        # In bfloat16, as one micro-batch of one rank gives it.
        assert gradient.dtype == torch.bfloat16
        self.own[name] = self.own.get(name, 0) + gradient.double()

    def _compare_and_step(self) -> None:
        import torch.distributed as dist
        from deepspeed.utils import safe_get_full_grad

        for name, exact in self.own.items():
            dist.all_reduce(exact)
            # DeepSpeed's is the mean over the ranks.
            exact /= dist.get_world_size()
            difference = safe_get_full_grad(self.parameters[name]).double() - exact
            self.errors[name] = float(difference.norm() / exact.norm())
        self._step()


def start(actor: type, config: LearnerConfig) -> list[Any]:
    """Start the ranks of a learner as actors of a class."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    remote = ray.remote(num_cpus=0.5, runtime_env={"env_vars": variables})(actor)
    return [remote.remote(settings(config, rank, port)) for rank in range(config.ranks)]


@pytest.mark.slow
def test_gradients_of_sixty_micro_batches_on_two_ranks_are_summed_in_float32(cluster: None) -> None:
    # Each trajectory is a micro-batch.
    config = CONFIG.model_copy(update={"ranks": 2, "micro_batch_tokens": 60})
    ranks = start(WatchedRank, config)
    items = make_items(EMBEDDED, 2 * MICRO_BATCHES)
    results = ray.get([rank.update.remote(items) for rank in ranks], timeout=500)
    for micro_batches, errors in results:
        assert micro_batches == MICRO_BATCHES
        assert len(errors) > 100
        # In bfloat16: 1.8 %; with float32 sums of gradients sent in bfloat16 0.24 %.
        assert max(errors.values()) < 1e-6
    assert ray.get(ranks[0].types.remote(), timeout=100) == {
        "parameters": {"torch.bfloat16"},
        "buffers": {"torch.float32"},
        "sent gradients": {"torch.float32"},
        "summed gradients": {"torch.float32"},
        "weights of the optimizer": {"torch.float32"},
        "moments": {"torch.float32"},
        "gradient norm": {"torch.float64"},
    }
    for rank in ranks:
        ray.kill(rank)


class CarelessRank:
    """A rank whose model loses the digits of its buffers, or its reference's does."""

    def __init__(self, settings: RankSettings) -> None:
        self.settings = settings

    def start(self, *, careless_with: str) -> str:
        """Return what starting the rank raises."""
        from learner import buffers
        from learner.rank import LearnerRank

        restore = buffers.restore
        built: list[Any] = []

        def restore_some(model: Any) -> None:
            built.append(model)
            if careless_with != ["policy", "reference"][len(built) - 1]:
                restore(model)

        buffers.restore = restore_some
        try:
            LearnerRank(self.settings)
        except ValueError as error:
            return str(error)
        return "nothing"


@pytest.mark.slow
@pytest.mark.parametrize("careless_with", ["policy", "reference"])
def test_a_rank_does_not_start_with_buffers_in_bfloat16(cluster: None, careless_with: str) -> None:
    [rank] = start(CarelessRank, CONFIG.model_copy(update={"kl_beta": 1e-3}))
    raised = ray.get(rank.start.remote(careless_with=careless_with), timeout=200)
    assert raised.startswith("buffer model.visual.rotary_pos_emb.inv_freq of the learner's model")
    assert "torch.bfloat16" in raised
    ray.kill(rank)
