"""The learner on the real stack: two ZeRO-3 ranks over gloo, on a tiny random Qwen3-VL."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from axpo.embedded import build
from learner.config import LearnerConfig
from learner.credit import TrainItem
from learner.learner import Learner
from rollout_workers.trajectory import EndReason, ObservationSegment, PolicySegment, Question, Trajectory

pytestmark = [pytest.mark.engine]
CONFIG = LearnerConfig(ranks=2, lr=1e-3, max_grad_norm=100.0, deadline_s=280, check_sync=True, bucket_mb=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("model") / "tiny", ["a few words to learn tokens from"]))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="module")
def learner(model: str, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    """Its start is kept in learner.start: a test that moves the weights loads it back."""
    learner = Learner(model, CONFIG)
    learner.start = str(tmp_path_factory.mktemp("checkpoints") / "start")  # type: ignore[attr-defined]
    learner.save(learner.start)  # type: ignore[attr-defined]
    yield learner
    learner.shutdown()


def ids_of(model: str) -> dict[str, int]:
    from transformers import Qwen3VLConfig

    config = Qwen3VLConfig.from_pretrained(model)
    return {"start": config.vision_start_token_id, "image": config.image_token_id, "end": config.vision_end_token_id}


def make_items(model: str, count: int, seed: int = 0, advantage: float | None = None) -> list[TrainItem]:
    """Random tokens: items of one question in three share its image, every third has a zoomed image, lengths differ."""
    rng = np.random.default_rng(seed)
    ids = ids_of(model)
    vision = [ids["start"], ids["image"], ids["end"]]

    def words(n: int) -> list[int]:
        return rng.integers(20, 250, n).tolist()  # bytes: the special ids lie above

    items = []
    for i in range(count):
        image = np.random.default_rng(i // 3).integers(0, 255, (96, 128, 3)).astype(np.uint8)
        question = Question(f"q{i // 3}", "", (image,), "")
        parts = [words(int(rng.integers(5, 40)))]
        segments: list = [PolicySegment(np.array(parts[0], np.int32), np.full(len(parts[0]), -6.0, np.float32), 0)]
        if i % 3 == 0:
            zoom = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
            segments.append(ObservationSegment(np.array([*words(3), *vision, *words(2)], np.int32), (zoom,)))
            last = words(int(rng.integers(5, 20)))
            segments.append(PolicySegment(np.array(last, np.int32), np.full(len(last), -6.0, np.float32), 0))
        trajectory = Trajectory(
            question.id, i % 3, np.array([*words(8), *vision, *words(9)], np.int32), tuple(segments), EndReason.ANSWERED
        )
        mask = trajectory.policy_mask
        a = float(rng.normal()) if advantage is None else advantage
        items.append(TrainItem(question, trajectory, np.where(mask, a, 0).astype(np.float32), mask, 1 / count))
    return items


def on_policy(learner: Learner, items: list[TrainItem]) -> list[TrainItem]:
    """The same items as if the learner's own policy had sampled them."""
    out = []
    for item, logprobs in zip(items, learner.logprobs(items), strict=True):
        segments, start = [], 0
        for segment in item.trajectory.segments:
            stop = start + len(segment.token_ids)
            policy = isinstance(segment, PolicySegment)
            segments.append(dataclasses.replace(segment, logprobs=logprobs[start:stop]) if policy else segment)
            start = stop
        out.append(dataclasses.replace(item, trajectory=dataclasses.replace(item.trajectory, segments=tuple(segments))))
    return out


def hf_weights(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder, "hf", "model.safetensors"))


def plain_torch_loss(model: str, items: list[TrainItem]):
    """An independent learner: Hugging Face's own processor and forward, one item at a time, autograd. Returns (model, loss)."""
    from PIL import Image
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    ids = ids_of(model)
    network = Qwen3VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    processor = AutoProcessor.from_pretrained(model).image_processor
    banned = [ids["start"], ids["image"], ids["end"], network.config.video_token_id]
    total = torch.zeros(())
    for item in items:
        t = item.trajectory
        images = processor([Image.fromarray(i) for i in (*item.question.images, *t.images)], return_tensors="pt")
        features = iter((images["image_grid_thw"].prod(-1) // 4).tolist())
        tokens, trained = [], []
        for token, mask in zip([*t.prompt_ids, *t.response_ids], [*[False] * len(t.prompt_ids), *item.mask], strict=True):
            n = next(features) if token == ids["image"] else 1
            tokens += [int(token)] * n
            trained += [bool(mask)] * n
        input_ids = torch.tensor([tokens])
        logits = network(input_ids=input_ids, mm_token_type_ids=(input_ids == ids["image"]).long(), **images).logits[0, :-1]
        logits[:, banned] = float("-inf")
        logprobs = logits.log_softmax(-1).gather(-1, input_ids[0, 1:, None])[:, 0][torch.tensor(trained[1:])]
        ratio = (logprobs - torch.from_numpy(t.logprobs[item.mask])).exp()
        a = torch.from_numpy(item.advantages[item.mask])
        total = total - item.weight * torch.minimum(ratio * a, ratio.clamp(0.8, 1.4) * a).mean()
    return network, total


def test_loss_and_gradient_equal_plain_torch(learner: Learner, model: str) -> None:
    # At the start policy == reference, so the KL term and its gradient are 0.
    learner.load(learner.start)  # type: ignore[attr-defined]
    items = on_policy(learner, make_items(model, 7))
    network, loss = plain_torch_loss(model, items)
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters() if p.grad is not None))
    metrics = learner.update(items)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_on_policy_ratio_is_one_and_a_step_raises_the_probability_of_what_was_right(learner: Learner, model: str) -> None:
    learner.load(learner.start)  # type: ignore[attr-defined]
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


def test_updated_weights_do_not_depend_on_ranks_micro_batches_or_checkpointing(
    learner: Learner, model: str, cluster: None, tmp_path: Path
) -> None:
    items = make_items(model, 7)
    learner.load(learner.start)  # type: ignore[attr-defined]
    two = [learner.update(items), learner.update(items)]
    learner.save(str(tmp_path / "two"))
    assert two[0]["micro_steps"] == 1
    other = Learner(model, CONFIG.model_copy(update={"ranks": 1, "micro_batch_tokens": 150, "gradient_checkpointing": True}))
    try:
        one = [other.update(items), other.update(items)]
        other.save(str(tmp_path / "one"))
    finally:
        other.shutdown()
    assert one[0]["micro_steps"] > 3
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    weights = hf_weights(str(tmp_path / "two"))
    for name, w in hf_weights(str(tmp_path / "one")).items():
        assert torch.norm(w - weights[name]) <= 1e-5 * torch.norm(w) + 1e-6, name


def test_save_and_load_restore_weights_optimizer_and_schedule(learner: Learner, model: str, tmp_path: Path) -> None:
    learner.load(learner.start)  # type: ignore[attr-defined]
    items = make_items(model, 4)
    learner.update(items)
    saved = str(tmp_path / "saved")
    learner.save(saved, "bfloat16")
    assert {p.name for p in tmp_path.iterdir()} == {"saved"}
    assert {w.dtype for w in hf_weights(saved).values()} == {torch.bfloat16}
    assert {p.name for p in Path(saved, "hf").iterdir()} == {p.name for p in Path(model).iterdir()}
    with pytest.raises(FileExistsError):
        learner.save(saved)
    expected = [learner.update(items), learner.update(items)]
    learner.load(saved)
    again = [learner.update(items), learner.update(items)]
    for a, b in zip(expected, again, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    with pytest.raises(FileNotFoundError, match="is no learner checkpoint"):
        learner.load(str(tmp_path / "none"))


def test_supervised_loss_falls_on_items_with_and_without_images(learner: Learner, model: str) -> None:
    learner.load(learner.start)  # type: ignore[attr-defined]
    items = make_items(model, 3)
    text = dataclasses.replace(
        items[1],
        question=Question("text", "", (), ""),
        trajectory=dataclasses.replace(items[1].trajectory, prompt_ids=np.array([21, 22, 23], np.int32)),
    )
    losses = [learner.update([*items, text], "nll")["loss"] for _ in range(4)]
    assert losses[-1] < losses[0] - 0.2
    assert learner.update([text], "nll")["micro_steps"] == 1  # the other rank runs the blank image


def test_a_loss_that_is_not_finite_is_skipped(learner: Learner, model: str, tmp_path: Path) -> None:
    learner.load(learner.start)  # type: ignore[attr-defined]
    items = make_items(model, 3)
    bad = dataclasses.replace(items[0], advantages=np.where(items[0].mask, np.nan, 0).astype(np.float32))
    metrics = learner.update([bad, *items[1:]])
    assert metrics["skipped"] == 1
    learner.save(str(tmp_path / "after"))
    start = hf_weights(learner.start)  # type: ignore[attr-defined]
    assert all(torch.equal(w, start[name]) for name, w in hf_weights(str(tmp_path / "after")).items())
    good = learner.update(items)
    assert good["skipped"] == 0
    assert np.isfinite(good["grad_norm"])


class Receiver:
    """Keeps what it is sent; fails at the first bucket, or loses one parameter, where told to."""

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

    def weights_equal(self, payload: dict) -> list[str]:
        return [t["name"] for t in payload["tensors"] if not np.array_equal(self.tensors[t["name"]], read(payload["file"], t))]

    def state(self) -> tuple[int | None, dict[str, np.ndarray]]:
        return self.version, self.tensors


def read(file: str, t: dict) -> np.ndarray:
    assert t["dtype"] == "float32"
    return np.fromfile(file, np.float32, int(np.prod(t["shape"])), offset=t["offset"]).reshape(t["shape"])


def receiver(**options):
    return ray.remote(num_cpus=0)(Receiver).remote(**options)


def test_sync_sends_every_parameter_once_and_names_what_differs(learner: Learner, tmp_path: Path) -> None:
    receivers = [receiver(), receiver()]
    learner.sync_weights(receivers, 7)
    learner.save(str(tmp_path / "sent"))
    weights = hf_weights(str(tmp_path / "sent"))
    for version, tensors in ray.get([r.state.remote() for r in receivers]):
        assert version == 7
        assert set(tensors) == set(weights)
        assert "lm_head.weight" not in tensors
        assert all(np.array_equal(tensors[name], w.numpy()) for name, w in weights.items())
    assert not list(Path("/dev/shm").glob("axpo-*"))
    name = "model.language_model.norm.weight"
    with pytest.raises(RuntimeError, match=f"differ in 1 parameters: .'{name}'"):
        learner.sync_weights([receivers[0], receiver(lose=name)], 8)


def test_a_failing_receiver_raises_and_leaves_the_learner_usable(learner: Learner, model: str) -> None:
    with pytest.raises(RuntimeError, match="engine is gone"):
        learner.sync_weights([receiver(fail=True)], 1)
    assert not list(Path("/dev/shm").glob("axpo-*"))
    learner.sync_weights([receiver()], 2)


def test_ranks_that_do_not_fit_are_refused(model: str, cluster: None) -> None:
    with pytest.raises(ValueError, match=r"learner.ranks=2 of .*'CPU': 1000"):
        Learner(model, LearnerConfig(cpus_per_rank=1000, deadline_s=2))
