"""How a checkpoint becomes whole with several ranks and beside the training, without DeepSpeed."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learner import checkpoint, manifest
from learner.checkpoint import Saving, in_memory
from learner.weights import plan_buckets


class Gather:
    """What two ranks, here threads, give at the same point."""

    def __init__(self) -> None:
        self.given: list = [None, None]
        self.barrier = threading.Barrier(2, timeout=10)

    def of(self, rank: int):
        def gather(mine):
            self.given[rank] = mine
            self.barrier.wait()
            everyone = list(self.given)
            self.barrier.wait()
            return everyone

        return gather


def finish(folder: Path, works) -> list[BaseException | None]:
    """`works[rank]` writes a file of that rank; returns what each rank raised."""
    gather = Gather()
    with ThreadPoolExecutor(2) as ranks:
        futures = [
            ranks.submit(
                manifest.finish, folder, [works[rank]], {"ranks": 2}, rank, gather.of(rank)
            )
            for rank in (0, 1)
        ]
        return [future.exception(10) for future in futures]


def test_each_rank_writes_and_hashes_its_share_and_one_seals(tmp_path: Path) -> None:
    folder = tmp_path / "step_0001"
    temporary = manifest.begin(folder)
    raised = finish(
        folder,
        [
            lambda: (temporary / "a").write_bytes(b"xy"),
            lambda: (temporary / "b").write_bytes(b"xyz"),
        ],
    )
    assert raised == [None, None]
    about = manifest.verify(folder)
    assert (about["ranks"], {name: entry["bytes"] for name, entry in about["files"].items()}) == (
        2,
        {"a": 2, "b": 3},
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step_0001"]


def test_one_rank_lists_the_files_for_all(tmp_path: Path, monkeypatch) -> None:
    """Another node may not see yet what was written here, and would leave it out."""
    folder = tmp_path / "step_0001"
    temporary = manifest.begin(folder)
    list_files, listed = manifest.files, []

    def files(of: Path) -> list[Path]:
        listed.append(of)
        return list_files(of)

    monkeypatch.setattr(manifest, "files", files)
    write_a, write_b = (lambda name=name: (temporary / name).write_bytes(b"x") for name in "ab")
    assert finish(folder, [write_a, write_b]) == [None, None]
    assert listed == [temporary]
    assert set(manifest.verify(folder)["files"]) == {"a", "b"}


def test_what_one_rank_raises_all_raise_and_there_is_no_checkpoint(tmp_path: Path) -> None:
    def full():
        raise OSError("no space left")

    folder = tmp_path / "step_0001"
    temporary = manifest.begin(folder)
    raised = finish(folder, [lambda: (temporary / "a").write_bytes(b"xy"), full])
    assert [str(error) for error in raised] == ["no space left"] * 2
    assert not folder.exists()
    manifest.clean(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_state_kept_in_memory_is_that_of_the_save(tmp_path: Path) -> None:
    class Engine:
        def save(self, state_dict, path):
            torch.save(state_dict, path)

    engine, weights, writes = Engine(), torch.tensor([1.0, 2.0]), []
    with in_memory(engine, writes.append):
        engine.save(state_dict={"weights": weights, "step": 3}, path=str(tmp_path / "later"))
    weights += 1  # training goes on
    engine.save({"weights": weights}, str(tmp_path / "now"))  # outside it writes as ever
    assert [path.name for path in tmp_path.iterdir()] == ["now"]
    (write,) = writes
    write()
    kept = torch.load(tmp_path / "later")
    assert (kept["weights"].tolist(), kept["step"]) == ([1.0, 2.0], 3)


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipfile", [True, False])
def test_a_checkpoint_from_elsewhere_runs_no_code(tmp_path: Path, zipfile: bool) -> None:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    engine, file = TorchCheckpointEngine(), tmp_path / "state.pt"
    engine.zipfile_serialization = zipfile
    states = checkpoint.random_states()
    scalers = [LossScaler(1.0), DynamicLossScaler(2.0, 2.0, 1000, 1.0, 1, True, False)]
    engine.save({"rng": states, "stage": ZeroStageEnum.weights, "scalers": scalers}, str(file))
    with checkpoint.no_code():
        loaded = engine.load(str(file), map_location="cpu")
        checkpoint.set_random_states(loaded["rng"])
    assert loaded["stage"] == ZeroStageEnum.weights
    engine.save({"module": Evil(tmp_path / "ran")}, str(file))
    with pytest.raises(ValueError, match="holds more than numbers"), checkpoint.no_code():
        engine.load(str(file), map_location="cpu")
    assert not (tmp_path / "ran").exists()
    engine.load(str(file), map_location="cpu")  # outside it loads as ever
    assert (tmp_path / "ran").exists()


def test_a_save_beside_the_training_tells_its_error_once() -> None:
    going = threading.Event()

    def fail():
        going.wait(10)
        raise OSError("no space left")

    saving = Saving()
    saving.check()
    saving.wait(0)
    saving.start(fail)
    saving.check()  # not over
    with pytest.raises(TimeoutError):
        saving.wait(0.01)
    going.set()
    with pytest.raises(OSError, match="no space left"):
        saving.wait(10)
    saving.check()


def test_an_export_is_gathered_in_buckets_and_written_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "source", tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text('{"dtype": "float32"}')
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 2, bias=False) for _ in range(5)])
    buckets = []

    def gathered(module: torch.nn.Module, bucket_bytes: int):
        for bucket in plan_buckets(module.named_parameters(), bucket_bytes):
            buckets.append(len(bucket))
            # The tensors are valid until the next bucket.
            tensors = [(name, parameter.detach().clone()) for name, parameter in bucket]
            yield tensors
            for _, tensor in tensors:
                tensor.fill_(float("nan"))

    monkeypatch.setattr(checkpoint, "gathered", gathered)
    # Each weight has 32 bytes: two fit a bucket, three a file.
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100)
    export = checkpoint.Export(source, folder, torch.bfloat16, bucket_bytes=64)
    checkpoint.save_hf(model, export, 1, lambda write: pytest.fail("only rank 0 writes"))
    assert not folder.exists()
    checkpoint.save_hf(model, export, 0, lambda write: write())
    assert buckets == [2, 2, 1] * 2
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    expected = {f"{i}.weight": files[i // 3] for i in range(5)}
    assert index["weight_map"] == expected
    for name, file in expected.items():
        written = load_file(folder / file)[name]
        assert torch.equal(written, model.get_parameter(name).to(torch.bfloat16))
    assert json.loads((folder / "config.json").read_text()) == {"dtype": "bfloat16"}
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_an_export_copies_nothing_from_outside_of_the_model_folder(tmp_path: Path) -> None:
    def copied(source: Path) -> dict[str, str]:
        folder = tmp_path / f"copy of {source.name}"
        folder.mkdir()
        checkpoint._copy_other_files(checkpoint.Export(source, folder, torch.float32, 64))
        return {file.name: file.read_text() for file in folder.iterdir()}

    secret = tmp_path / "secret"
    secret.write_text("secret")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    for made in (blobs, snapshot):
        made.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    for source in (snapshot, tmp_path / "local"):
        source.mkdir(exist_ok=True)
        (source / "config.json").write_text("{}")
        (source / "merges.txt").write_text("a b")
        (source / "vocab.json").symlink_to("merges.txt")
        (source / "notes.txt").symlink_to(secret)
        (source / "zero").symlink_to("/dev/zero")
        os.mkfifo(source / "pipe")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1")
    own = {"config.json": "{}", "merges.txt": "a b", "vocab.json": "a b"}
    assert copied(tmp_path / "local") == own
    # The hub's cache is links into its repository.
    assert copied(snapshot) == own | {"tokenizer.json": "{}"}
