"""The learner on the real stack: two ZeRO-3 ranks over gloo, on a tiny random Qwen3-VL."""

from __future__ import annotations

import dataclasses
import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from axpo.sft.embedded import build
from learner.config import LearnerConfig, LoraSettings
from learner.credit import TrainItem
from learner.learner import Learner
from learner.manifest import DamagedCheckpoint
from learner.objectives import objectives
from rollout_workers.trajectory import PolicySegment, Question
from tests.learner.multimodal import forked_items, make_items, plain_torch_loss

pytestmark = [pytest.mark.engine]
CONFIG = LearnerConfig(
    ranks=2, lr=1e-3, max_grad_norm=100.0, deadline_s=280, check_sync=True, bucket_mb=1
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(
        build(tmp_path_factory.mktemp("model") / "tiny", ["a few words to learn tokens from"])
    )


@pytest.fixture(scope="module")
def ranks(model: str, cluster: None) -> Iterator[Learner]:
    learner = Learner(model, CONFIG)
    yield learner
    learner.shutdown()


@pytest.fixture(scope="module")
def start(ranks: Learner, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save a checkpoint of the ranks before any test has moved their weights."""
    folder = str(tmp_path_factory.mktemp("checkpoints") / "start")
    ranks.save(folder)
    return folder


@pytest.fixture
def learner(ranks: Learner, start: str) -> Learner:
    """Return two ranks with the weights of the start."""
    ranks.load(start)
    return ranks


def on_policy(learner: Learner, items: list[TrainItem]) -> list[TrainItem]:
    """Return the same items as if the learner's own policy had sampled them."""
    out = []
    for item, logprobs in zip(items, learner.logprobs(items), strict=True):
        segments, start = [], 0
        for segment in item.trajectory.segments:
            stop = start + len(segment.token_ids)
            policy = isinstance(segment, PolicySegment)
            segments.append(
                dataclasses.replace(segment, logprobs=logprobs[start:stop]) if policy else segment
            )
            start = stop
        out.append(
            dataclasses.replace(
                item, trajectory=dataclasses.replace(item.trajectory, segments=tuple(segments))
            )
        )
    return out


def without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "seconds"}


def hf_weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "hf", "model.safetensors"))


def test_loss_and_gradient_equal_plain_torch(learner: Learner, model: str) -> None:
    # At the start policy == reference, so the KL term and its gradient are 0.
    items = on_policy(learner, make_items(model, 7))
    network, loss = plain_torch_loss(model, items)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters() if p.grad is not None))
    metrics = learner.update(items)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_on_policy_ratio_is_one_and_a_step_raises_the_probability_of_what_was_right(
    learner: Learner, model: str
) -> None:
    items = on_policy(learner, make_items(model, 6, advantage=1.0))
    before = learner.update(items)
    assert before["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert before["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert before["logprob_gap_mean"] < 1e-5
    assert before["clip_fraction"] == 0
    assert before["kl"] == pytest.approx(0, abs=1e-6)
    assert before["loss"] == pytest.approx(-1, abs=1e-5)
    assert before["trained_tokens"] == sum(int(i.mask.sum()) for i in items)
    after = learner.update(items)
    assert after["loss"] < before["loss"] - 0.05
    assert after["kl"] > 1e-3  # the reference stayed where it was


def test_ranks_compute_the_same_to_the_bit_after_they_gave_their_memory_away(
    learner: Learner, start: str, model: str
) -> None:
    items = make_items(model, 6)
    expected = [without_seconds(learner.update(items)) for _ in range(3)]
    learner.load(start)
    found = [without_seconds(learner.update(items))]
    learner.release_memory()
    learner.release_memory()  # changes nothing
    # While the memory is given away, a call takes it back for its time.
    found.append(without_seconds(learner.update(items)))
    learner.reclaim_memory()
    found.append(without_seconds(learner.update(items)))
    assert found == expected


def test_entropies_are_those_that_an_update_reports(learner: Learner, model: str) -> None:
    items = make_items(model, 5)
    entropies = learner.entropies(items)
    assert not any(values[~item.mask].any() for item, values in zip(items, entropies, strict=True))
    trained = np.concatenate(
        [values[item.mask] for item, values in zip(items, entropies, strict=True)]
    )
    assert learner.update(items)["entropy_mean"] == pytest.approx(trained.mean(), abs=1e-5)


def test_the_gradient_does_not_depend_on_ranks_micro_batches_layout_or_checkpointing(
    learner: Learner, model: str, cluster: None, tmp_path: Path
) -> None:
    items = [*make_items(model, 5), *forked_items(model)]
    two = learner.update(items)
    learner.save(str(tmp_path / "two"))
    assert two["micro_steps"] == 1
    split = {
        "ranks": 1,
        "micro_batch_tokens": 150,
        "gradient_checkpointing": True,
        "layout": "packed",
    }
    other = Learner(model, CONFIG.model_copy(update=split))
    try:
        one = other.update(items)
        other.save(str(tmp_path / "one"))
    finally:
        other.shutdown()
    assert one["micro_steps"] > 3
    assert one["loss"] == pytest.approx(
        two["loss"], abs=1e-6
    )  # a sum of terms of both signs and of size 1
    assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-5)
    gradients = first_moments(tmp_path / "two")
    for name, gradient in first_moments(tmp_path / "one").items():
        # Beside the relative bound an absolute one: softmax ignores what a key's bias adds, so that
        # gradient is round-off alone.
        bound = 1e-5 * torch.norm(gradient) + 1e-7 * one["grad_norm"]
        assert torch.norm(gradient - gradients[name]) <= bound, name


def first_moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return AdamW's first moments by parameter.

    After one update they are (1 - beta_1) times the gradient.
    """
    from argparse import Namespace

    from deepspeed.checkpoint import ds_to_universal

    out = checkpoint / "universal"
    folders = {
        "input_folder": str(checkpoint / "state" / "learner"),
        "output_folder": str(out),
        "keep_temp_folder": False,
    }
    ds_to_universal.main(
        Namespace(**folders, strict=True, num_extract_workers=1, num_merge_workers=1)
    )
    return {file.parent.name: torch.load(file) for file in out.glob("zero/*/exp_avg.pt")}


def test_save_and_load_restore_weights_optimizer_and_schedule(
    learner: Learner, model: str, tmp_path: Path
) -> None:
    items = make_items(model, 4)
    learner.update(items)
    saved = str(tmp_path / "saved")
    learner.save(saved, hf_dtype="bfloat16")
    assert {p.name for p in tmp_path.iterdir()} == {"saved"}
    assert {w.dtype for w in hf_weights(saved).values()} == {torch.bfloat16}
    assert {p.name for p in Path(saved, "hf").iterdir()} == {p.name for p in Path(model).iterdir()}
    with pytest.raises(FileExistsError):
        learner.save(saved)
    expected = [learner.update(items), learner.update(items)]
    learner.load(saved)
    again = [learner.update(items), learner.update(items)]
    assert list(map(without_seconds, again)) == list(map(without_seconds, expected))
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json: FileNotFoundError"):
        learner.load(str(tmp_path / "none"))
    (shard,) = Path(saved, "state", "learner").glob("*_rank_1_*optim_states.pt")
    with shard.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DamagedCheckpoint, match=rf"{shard.name}: its content has changed"):
        learner.load(saved)


@pytest.mark.slow
def test_a_checkpoint_loads_on_another_number_of_ranks(
    learner: Learner, model: str, cluster: None, tmp_path: Path
) -> None:
    items = make_items(model, 4)
    learner.update(items)
    saved = str(tmp_path / "saved")
    learner.save(saved)
    alone = Learner(model, CONFIG.model_copy(update={"ranks": 1}))
    try:
        alone.load(saved)
        alone.save(str(tmp_path / "alone"))
        one = [alone.update(items), alone.update(items)]
    finally:
        alone.shutdown()
    weights = hf_weights(saved)
    assert all(
        torch.equal(w, weights[name]) for name, w in hf_weights(str(tmp_path / "alone")).items()
    )
    # The moments came along: the second update follows from them.
    for a, b in zip([learner.update(items), learner.update(items)], one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    learner.load(str(tmp_path / "alone"))  # and back to two ranks
    assert learner.update(items)["loss"] == pytest.approx(one[0]["loss"], abs=1e-5)


def test_a_save_beside_the_training_is_that_of_its_moment(
    learner: Learner, model: str, tmp_path: Path
) -> None:
    items = make_items(model, 4)
    learner.update(items)
    learner.save(str(tmp_path / "waited"))
    learner.save(str(tmp_path / "beside"), wait=False)
    expected = [learner.update(items), learner.update(items)]
    learner.finish_save()
    waited, beside = hf_weights(str(tmp_path / "waited")), hf_weights(str(tmp_path / "beside"))
    assert all(torch.equal(w, beside[name]) for name, w in waited.items())
    learner.load(str(tmp_path / "beside"))
    again = [learner.update(items), learner.update(items)]
    assert list(map(without_seconds, again)) == list(map(without_seconds, expected))


def test_a_full_disk_is_told_before_anything_is_written(learner: Learner, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        with pytest.raises(OSError, match=r"a checkpoint takes about .* MB, 4 MB are free"):
            learner.save(str(small / "step_0001"))
        assert not (small / "step_0001").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)
    learner.save(str(tmp_path / "elsewhere"))  # the ranks are still in step


def test_supervised_loss_falls_on_items_with_and_without_images(
    learner: Learner, model: str
) -> None:
    items = make_items(model, 3)
    text = dataclasses.replace(
        items[1],
        question=Question("text", "", (), ""),
        trajectory=dataclasses.replace(
            items[1].trajectory, prompt_ids=np.array([21, 22, 23], np.int32)
        ),
    )
    losses = [learner.fine_tune([*items, text])["loss"] for _ in range(4)]
    assert losses[-1] < losses[0] - 0.2
    assert learner.fine_tune([text])["micro_steps"] == 1  # the other rank runs the blank image


def test_a_loss_that_is_not_finite_is_skipped(
    learner: Learner, model: str, start: str, tmp_path: Path
) -> None:
    items = make_items(model, 3)
    bad = dataclasses.replace(
        items[0], advantages=np.where(items[0].mask, np.nan, 0).astype(np.float32)
    )
    metrics = learner.update([bad, *items[1:]])
    assert metrics["skipped"] == metrics["skipped_in_a_row"] == 1
    assert learner.update([bad])["skipped_in_a_row"] == 2
    learner.save(str(tmp_path / "after"))
    before, after = hf_weights(start), hf_weights(str(tmp_path / "after"))
    assert all(torch.equal(w, before[name]) for name, w in after.items())
    good = learner.update(items)
    assert good["skipped"] == good["skipped_in_a_row"] == 0
    assert np.isfinite(good["grad_norm"])


class Receiver:
    """Keep what is sent; fail at the first bucket or lose one parameter if told to."""

    def __init__(self, fail: bool = False, lose: str | None = None) -> None:
        self.fail, self.lose = fail, lose
        self.tensors: dict[str, np.ndarray] = {}
        self.version: int | None = None

    def init_weight_transfer(self, info: dict) -> None:
        assert info == {}

    def start_weight_update(self) -> None:
        self.tensors = {}

    def update_weights(self, payload: dict) -> None:
        if self.fail:
            raise RuntimeError("engine is gone")
        for t in payload["tensors"]:
            assert t["name"] not in self.tensors
            self.tensors[t["name"]] = read(payload["file"], t) * (t["name"] != self.lose)

    def finish_weight_update(self, version: int) -> int:
        self.version = version
        return version

    def differing_weights(self, payload: dict) -> list[str]:
        return [
            t["name"]
            for t in payload["tensors"]
            if not np.array_equal(self.tensors[t["name"]], read(payload["file"], t))
        ]

    def state(self) -> tuple[int | None, dict[str, np.ndarray]]:
        return self.version, self.tensors


def read(file: str, t: dict) -> np.ndarray:
    assert t["dtype"] == "float32"
    return np.fromfile(file, np.float32, int(np.prod(t["shape"])), offset=t["offset"]).reshape(
        t["shape"]
    )


def receiver(**options):
    return ray.remote(num_cpus=0)(Receiver).remote(**options)


def shared_files() -> set[Path]:
    """Return the weight files in shared memory, those of other runs on this machine included."""
    return set(Path("/dev/shm").glob("axpo-*"))


def test_sync_sends_every_parameter_once_and_names_what_differs(
    learner: Learner, tmp_path: Path
) -> None:
    files_before = shared_files()
    receivers = [receiver(), receiver()]
    learner.send_weights(receivers, 7)
    learner.save(str(tmp_path / "sent"))
    weights = hf_weights(str(tmp_path / "sent"))
    for version, tensors in ray.get([r.state.remote() for r in receivers]):
        assert version == 7
        assert set(tensors) == set(weights)
        assert "lm_head.weight" not in tensors
        assert all(np.array_equal(tensors[name], w.numpy()) for name, w in weights.items())
    assert shared_files() <= files_before
    name = "model.language_model.norm.weight"
    with pytest.raises(RuntimeError, match=f"differ in 1 parameters: .'{name}'"):
        learner.send_weights([receivers[0], receiver(lose=name)], 8)


def test_a_failing_receiver_raises_and_leaves_the_learner_usable(
    learner: Learner, model: str
) -> None:
    files_before = shared_files()
    with pytest.raises(RuntimeError, match="engine is gone"):
        learner.send_weights([receiver(fail=True)], 1)
    assert shared_files() <= files_before
    learner.send_weights([receiver()], 2)


def test_ranks_that_do_not_fit_are_refused(model: str, cluster: None) -> None:
    with pytest.raises(ValueError, match=r"learner.ranks=2 of .*'CPU': 1000"):
        Learner(model, LearnerConfig(cpus_per_rank=1000, deadline_s=2))


def test_mini_batches_and_epochs_take_steps_and_the_first_has_ratio_one(
    model: str, cluster: None
) -> None:
    config = CONFIG.model_copy(
        update={
            "ranks": 1,
            "epochs": 2,
            "mini_batches": 2,
            "objective": objectives.parse("dapo"),
            "correction": "truncate",
        }
    )
    learner = Learner(model, config)
    try:
        items = [
            *make_items(model, 6, advantage=1.0),
            *forked_items(model),
        ]  # three questions: mini-batches of two and one
        first = learner.update(items)
    finally:
        learner.shutdown()
    assert first["optimizer_steps"] == 4
    # The engine's log-probabilities (-6) are far from the learner's, but the ratio is to the
    # learner's own.
    assert first["logprob_gap_mean"] > 0.1
    assert 1 < first["ratio_max"] < 10
    assert first["correction_mean"] <= 2


@pytest.mark.slow
def test_adapters_train_alone_and_leave_merged(model: str, cluster: None, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"lora": LoraSettings(rank=4, alpha=8, targets=("q_proj", "down_proj")), "lr": 0.02}
    )
    learner = Learner(model, config)
    try:
        items = on_policy(learner, make_items(model, 4, advantage=1.0))
        first, second = learner.update(items), learner.update(items)
        target = receiver()
        learner.send_weights([target], 1)  # check_sync is on
        learner.save(str(tmp_path / "saved"))
        logprobs = learner.logprobs(items)
        learner.load(str(tmp_path / "saved"))
        assert all(
            np.array_equal(a, b) for a, b in zip(learner.logprobs(items), logprobs, strict=True)
        )
    finally:
        learner.shutdown()
    assert first["kl"] == pytest.approx(
        0, abs=1e-6
    )  # the reference is the base, under adapters that are still zero
    assert second["kl"] > 1e-4
    assert second["loss"] < first["loss"] - 0.01
    before, after = load_file(Path(model, "model.safetensors")), hf_weights(str(tmp_path / "saved"))
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed == {
        n for n in before if "language_model" in n and ("q_proj" in n or "down_proj" in n)
    }
    sent = ray.get(target.state.remote())[1]
    assert all(np.array_equal(sent[name], w.numpy()) for name, w in after.items())
    whole = Learner(
        str(tmp_path / "saved" / "hf"), CONFIG.model_copy(update={"ranks": 1, "kl_beta": 0.0})
    )
    try:
        for a, b in zip(whole.logprobs(items), logprobs, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    finally:
        whole.shutdown()


def test_a_profile_of_every_rank_holds_the_operators_of_an_update(learner, model, tmp_path):
    learner.begin_profile()
    learner.update(on_policy(learner, make_items(model, 3)))
    learner.end_profile(str(tmp_path / "profile" / "step_0001"))
    for rank in range(2):
        file = tmp_path / "profile" / "step_0001" / f"rank_{rank}.json.gz"
        with gzip.open(file) as packed:
            events = json.load(packed)["traceEvents"]
        names = {event.get("name") for event in events}
        assert "aten::mm" in names
        assert any("all_gather" in str(name) or "allgather" in str(name) for name in names)
        assert "aten::mm" in file.with_name(f"rank_{rank}.txt").read_text()
    # Without a profile under way there is nothing to write.
    learner.end_profile(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
