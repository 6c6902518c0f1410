"""A user's rows become questions.

Tested are columns, images by path or bytes, verifiers, the order, and what travels to the workers.
"""

import base64
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from axpo.config import parse_recipe
from axpo.errors import AxpoError
from axpo.sft.demonstrations import Demonstrations
from axpo.tasks.data import DataConfig, epoch_order, without_marks
from axpo.tasks.dataset import DatasetConfig
from rollout_workers.chat import Chat
from rollout_workers.trajectory import UnusableQuestion, pixels

PHOTO = np.arange(40 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 40, 3)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    return file.getvalue()


def write(folder, *rows) -> str:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def recipe(**task):
    engine = {"weight_transfer": "shared_memory"}
    return parse_recipe(
        {
            "name": "x",
            "model": "a/b",
            "task": {"kind": "dataset"} | task,
            "steps": 1,
            "questions_per_step": 1,
            "rollout": {"engine": engine},
        }
    )


def test_columns_of_ones_own(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    address = "data:image/png;base64," + base64.b64encode(png()).decode()
    rows = [
        {
            "problem": "<image><image>\nHow far?",
            "figure": "a.png",
            "more": [address, None],
            "gold": 4.5,
            "unit": "cm",
        }
    ]
    columns = {
        "question": "problem",
        "answer": "gold",
        "images": ["figure", "more"],
        "info": "unit",
    }
    file = write(tmp_path, *rows)
    config = recipe(
        train=file,
        held_out=file,
        columns=columns,
        verifier={"name": "numeric", "tolerance": 0.1},
    ).task
    config.check_inputs()
    task = config.load()
    (question,) = task.held_out()
    assert (question.text, question.answer, question.info) == ("\nHow far?", "4.5", {"unit": "cm"})
    assert [pixels(image).tolist() for image in question.images] == [PHOTO.tolist()] * 2
    rewards = [
        task.verify(question, f"\\boxed{{{text}}}") for text in ("4.9", "4.95", "4.96", "far")
    ]
    assert rewards == [1, 1, 0, 0]  # 0.1 * 4.5 = 0.45


def test_questions_of_text_alone(tmp_path):
    file = write(tmp_path, {"question": "1 + 1?", "answer": 2})
    config = recipe(train=file, held_out=file, columns={"images": []}).task
    config.check_inputs()
    assert config.load().train(3).images == ()


def test_a_dataset_keeps_its_images_for_our_limits(tmp_path):
    import datasets

    rows = [{"question": f"Which {i}?", "image": {"bytes": png()}, "answer": "B"} for i in range(3)]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(
        str(tmp_path / "saved")
    )
    sources = {
        name: {"path": str(tmp_path / "saved"), "split": split}
        for name, split in (("train", "train"), ("held_out", "test"))
    }
    config = recipe(**sources, columns={"images": "image"}, verifier="choice").task
    config.check_inputs()
    task = config.load()
    assert [question.text for question in task.held_out()] == ["Which 1?"]
    assert pixels(task.train(0).images[0]).tolist() == PHOTO.tolist()
    with pytest.raises(
        AxpoError, match=r"saved, row 1: image: image 1 is 40x40 pixels, the limit of a side is 32"
    ):
        recipe(**sources, columns={"images": "image"}, images={"max_side": 32}).task.check_inputs()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"verifier": "numeric"}, "row 1: answer: expected a number, found 'many'"),
        ({"verifier": "choice"}, "row 1: answer: expected the letter of a choice"),
        (
            {"columns": {"info": ["unit"]}},
            "row 1: unit: missing; the row has question, images, answer",
        ),
        ({"train": {"path": "nowhere.jsonl"}}, "nowhere.jsonl: no such file"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, task, message):
    (tmp_path / "a.png").write_bytes(png())
    file = write(tmp_path, {"question": "How many?", "images": "a.png", "answer": "many"})
    with pytest.raises(AxpoError) as caught:
        recipe(**{"train": file, "held_out": file} | task).task.check_inputs()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"verifier": "exakt"},
            "task.verifier='exakt': expected one of exact, numeric, choice, math, ",
        ),
        ({"verifier": "nowhere:f"}, "task.verifier='nowhere:f': cannot import nowhere"),
        (
            {"verifier": {"name": "numeric", "tolerance": -1}},
            "task.verifier.tolerance=-1: Input should be greater than or equal to 0",
        ),
        ({"verifier": {"name": "exact", "tolerance": 1}}, "task.verifier.tolerance: unknown key"),
        (
            {"verifier": "json:loads"},
            "task.verifier='json:loads': expected a function of (question, answer)",
        ),
        ({"columns": {"images": 3}}, "task.columns.images=3: Input should be a valid tuple"),
        ({"train": 3}, "task.train=3: Input should be a valid dictionary"),
        ({"kind": "datasets"}, "task.kind='datasets': expected one of "),
        ({"kind": None}, "task.kind: required, but not given"),
    ],
)
def test_a_bad_field_is_named(task, message):
    with pytest.raises(AxpoError) as caught:
        recipe(**{"train": "a.jsonl", "held_out": "a.jsonl"} | task)
    assert message in str(caught.value)


def test_an_epoch_is_shuffled_once(tmp_path):
    file = write(tmp_path, *({"question": str(i), "answer": i} for i in range(5)))
    task = DatasetConfig(train=file, held_out=file, columns={"images": []}).load()
    epoch_order.cache_clear()
    epochs = [[task.train(5 * epoch + i).answer for i in range(5)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list("01234")
    assert epochs[0] != epochs[1]
    assert epoch_order.cache_info().misses == 2


def test_a_worker_gets_no_rows(tmp_path):
    file = write(tmp_path, {"question": "Which one is it?", "answer": "7"})
    task = DatasetConfig(train=file, held_out=file, columns={"images": []}).load()
    sent = pickle.dumps(task.verify)
    assert b"Which one" not in sent
    assert pickle.loads(sent)(task.train(0), "\\boxed{7}") == 1.0


@pytest.mark.parametrize(
    ("written", "text", "places"),
    [
        (" Which is red?\n", "Which is red?", ()),
        # All in front: as without marks.
        ("<image><image>Which is red?", "Which is red?", ()),
        # What stands between an image and the text stays, as in a row of fine-tuning.
        ("\n<image>\n<image>\nWhich is red?", "\n\nWhich is red?", (0, 1)),
        ("<image> or <image>?", " or ?", (0, 4)),
        (" Is <image> or <image>", "Is  or ", (3, 7)),
        ("First:<image>\nsecond:<image>\nWhich?", "First:\nsecond:\nWhich?", (6, 14)),
        ("Which is red? <image><image>", "Which is red? ", (14, 14)),
    ],
)
def test_marks_say_where_images_stand(written, text, places):
    assert without_marks(written, 2) == (text, places)


def test_a_question_has_its_images_where_the_marks_are(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    row = {"question": "Is <image> or <image> red?", "images": ["a.png", "a.png"], "answer": "A"}
    file = write(tmp_path, row, row | {"question": "Which?"})
    task = recipe(train=file, held_out=file).task.load()
    marked, plain = task.held_out()
    assert (marked.text, marked.places) == ("Is  or  red?", (3, 7))
    assert (plain.text, plain.image_places, plain.places) == ("Which?", (), (0, 0))
    file = write(tmp_path, row | {"question": "Is <image> red?"})
    with pytest.raises(
        AxpoError,
        match=r"row 1: question: 1 <image> marks for 2 images; expected as many, or none$",
    ):
        recipe(train=file, held_out=file).task.check_inputs()


def test_images_are_decoded_when_they_are_needed_and_a_bad_one_is_named(tmp_path):
    good = io.BytesIO()
    Image.fromarray(PHOTO).save(good, "JPEG")
    (tmp_path / "good.jpg").write_bytes(good.getvalue())
    (tmp_path / "cut.jpg").write_bytes(good.getvalue()[:-200])
    rows = [{"question": "?", "images": f"{name}.jpg", "answer": "A"} for name in ("good", "cut")]
    file = write(tmp_path, *rows)
    config = recipe(train=file, held_out=file, max_bad_rows=0.5).task
    reason = f"{file}, row 2: images: {tmp_path}/cut.jpg cannot be read: OSError: image file is"
    assert [fault.startswith(reason) for fault in config.check_inputs()] == [True, True]
    read, broken = config.load().held_out()
    assert pixels(read.images[0]).shape == (40, 40, 3)
    with pytest.raises(UnusableQuestion, match=f"^{reason}"):
        pixels(broken.images[0])


def test_rows_that_do_not_fit_the_context_are_named_and_only_all_of_them_stop_a_run(tmp_path):
    for name, size in (("small", (64, 64)), ("large", (640, 480))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    row = {"question": "Which?", "answer": "A"}
    small, large = row | {"images": "small.png"}, row | {"images": "large.png"}
    sizes = []

    class Fits:
        def __init__(self, most):
            self.most = most

        def __call__(self, text, found):
            sizes.append((text, *found))
            if found[0][0] > self.most:
                raise ValueError("300 tokens of images and 20 of text, but ...")

        @property
        def held_out(self):
            # Tools of evaluations take so much of the context that no image fits.
            return Fits(self.most - 550) if self.most > 600 else self

    fits = Fits(100)
    file = write(tmp_path, small, large)
    config = recipe(train=file, held_out=file).task
    reason = f"{file}, row 2: 300 tokens of images and 20 of text, but ..."
    assert config.check_inputs(fits) == [reason, reason]
    assert sizes == [("Which?", (64, 64)), ("Which?", (640, 480))] * 2
    assert config.check_inputs(Fits(650)) == [reason]  # of the held-out rows alone
    # What is scaled down when it is decoded counts as scaled down.
    scaled = recipe(train=file, held_out=file, images={"scale_above": 4096}).task
    assert scaled.check_inputs(fits) == []
    file = write(tmp_path, large)
    with pytest.raises(AxpoError, match=r"row 1: 300 tokens .*; no row of .* fits the context$"):
        recipe(train=file, held_out=file).task.check_inputs(fits)


def test_a_photograph_above_the_limit_is_scaled_down(tmp_path):
    Image.new("RGB", (7680, 4320), (200, 30, 30)).save(tmp_path / "8k.jpg")
    file = write(tmp_path, {"question": "Which colour?", "images": "8k.jpg", "answer": "red"})
    config = recipe(train=file, held_out=file).task
    assert config.check_inputs() == []
    image = pixels(config.load().train(0).images[0])
    # sqrt(16,000,000 / (7,680 x 4,320)) = 0.694
    assert image.shape == (3000, 5333, 3)
    refusing = recipe(train=file, held_out=file, images={"max_pixels": 1_000_000}).task
    with pytest.raises(AxpoError, match=r"8k\.jpg is 7680x4320 pixels, the limit is 1,000,000"):
        refusing.check_inputs()


def test_marks_mean_the_same_in_training_and_in_fine_tuning(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    asked = "Is <image>\n or <image> red?"
    images = ["a.png", "a.png"]
    file = write(tmp_path, {"question": asked, "images": images, "answer": "A"})
    question = recipe(train=file, held_out=file).task.load().train(0)
    answer = {"role": "assistant", "content": "clear\n</think>\n\n\\boxed{A}"}
    messages = [{"role": "user", "content": asked}, answer]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": messages, "images": images}) + "\n")
    chat = Chat.load("axpo/models/qwen3-vl-tiny")
    _, trajectory = Demonstrations(DataConfig(path=str(chats)), chat, seed=0).example(0)
    prompt = chat.prompt(question.text, question.places, [], None)
    assert trajectory.prompt_ids.tolist() == prompt.tolist()
