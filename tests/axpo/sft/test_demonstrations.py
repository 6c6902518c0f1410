"""Chat rows with images, from JSONL and from a Hugging Face dataset, as scripted trajectories."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from axpo.errors import AxpoError
from axpo.sft.demonstrations import Demonstrations
from axpo.tasks.data import DataConfig
from rollout_workers.chat import Chat
from rollout_workers.trajectory import uses_tools

MODEL = "axpo/models/qwen3-vl-tiny"
CALL = {
    "type": "function",
    "function": {"name": "image_zoom_in", "arguments": '{"bbox_2d": [0, 0, 500, 500]}'},
}
PHOTO = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3)
CROP = 255 - PHOTO


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def messages(weight=1):
    return [
        {"role": "system", "content": "Be careful."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which digit?"}]},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Too small.",
            "tool_calls": [CALL],
            "weight": weight,
        },
        {"role": "tool", "content": [{"type": "text", "text": "crop "}, {"type": "image"}]},
        {"role": "assistant", "content": "Clear.\n</think>\n\nIt is \\boxed{7}."},
    ]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(MODEL)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(PHOTO))
    (tmp_path / "crop.png").write_bytes(png(CROP))
    return tmp_path


def write(folder, *rows) -> DataConfig:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(file))


def check(chat, question, trajectory) -> None:
    np.testing.assert_array_equal(question.images[0], PHOTO)
    np.testing.assert_array_equal(trajectory.images[0], CROP)
    assert "Be careful." in chat.decode(trajectory.prompt_ids)
    trained = chat.decode(trajectory.response_ids[trajectory.policy_mask])
    assert trained.startswith("Too small.\n</think>\n\n<tool_call>\n{")
    assert trained.endswith("It is \\boxed{7}.<|im_end|>")
    assert "crop" not in trained
    assert uses_tools(trajectory, chat.tokens)


def test_a_tool_trace_from_jsonl(folder, chat):
    data = Demonstrations(
        write(folder, {"messages": messages(), "images": ["photo.png", "crop.png"]}), chat, 0
    )
    check(chat, *data.example(0))


@pytest.mark.parametrize("as_files", [True, False])
def test_a_tool_trace_from_a_dataset_with_images_as_files_or_bytes(folder, chat, as_files):
    import datasets

    rows = [{"messages": json.loads(json.dumps(messages())), "images": [png(PHOTO), png(CROP)]}]
    for message in rows[0]["messages"]:  # a dataset's columns have one type
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    if as_files:
        rows[0]["images"] = [str(folder / "photo.png"), str(folder / "crop.png")]
        dataset = datasets.Dataset.from_list(rows).cast_column(
            "images", datasets.List(datasets.Image())
        )
    else:
        dataset = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(folder / "saved"))
    check(chat, *Demonstrations(DataConfig(path=str(folder / "saved")), chat, 0).example(0))


def test_a_turn_of_weight_zero_is_read_and_not_trained_on(folder, chat):
    data = Demonstrations(
        write(folder, {"messages": messages(weight=0), "images": ["photo.png", "crop.png"]}),
        chat,
        0,
    )
    _, trajectory = data.example(0)
    assert chat.decode(trajectory.response_ids[trajectory.policy_mask]).startswith("Clear.")
    assert "image_zoom_in" in chat.decode(trajectory.response_ids)


def test_every_epoch_shows_every_row_in_an_order_of_its_own(folder, chat):
    rows = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "x"}]}
        for i in range(8)
    ]
    data = Demonstrations(write(folder, *rows), chat, 3)
    epochs = [[data.example(8 * epoch + i)[0].text for i in range(8)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [str(i) for i in range(8)]
    assert epochs[0] != epochs[1]
    assert epochs[0] == [data.example(i)[0].text for i in range(8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["photo.png"]}, "images: fewer than"),
        ({"images": ["photo.png"] * 3}, "images: more than"),
        ({"images": ["none.png", "crop.png"]}, "is not there"),
        ({"messages": messages()[:1]}, "expected a user message"),
        (
            {"messages": [*messages(), {"role": "user", "content": "and?"}]},
            r"messages\[4\]: role 'user'",
        ),
        ({"messages": messages()[:-1]}, "ends with a text of the policy"),
    ],
)
def test_a_bad_row_is_named(folder, chat, change, message):
    row = {"messages": messages(), "images": ["photo.png", "crop.png"]} | change
    with pytest.raises(AxpoError, match=rf"data\.jsonl, row 1: .*{message}"):
        Demonstrations(write(folder, row), chat, 0).example(0)


def test_missing_data_is_named(folder, chat):
    with pytest.raises(AxpoError, match="no such file"):
        Demonstrations(DataConfig(path=str(folder / "none.jsonl")), chat, 0)
    with pytest.raises(AxpoError, match="no rows"):
        Demonstrations(write(folder), chat, 0)
