"""Training rows that are questions of benchmarks are found, told and left out."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from axpo.cli import app
from axpo.config import parse_recipe
from axpo.errors import AxpoError
from axpo.evaluation.fingerprints import ALIKE, fingerprint, stems
from axpo.sft.demonstrations import Demonstrations
from axpo.tasks.data import DataConfig
from axpo.tasks.rows import BadRow
from rollout_workers.chat import Chat
from tests.axpo.evaluation import invented
from tests.axpo.tasks.public_sets import picture

MODEL = Path("axpo/models/qwen3-vl-tiny").resolve()
PHOTO = np.asarray(picture("a photograph of nine cups", (400, 300)))
RECIPE = """
name: x
model: a/b
steps: 1
questions_per_step: 1
rollout: {engine: {weight_transfer: shared_memory}}
task: {kind: mixed, families: {rows: {task: {kind: dataset, train: TRAIN, held_out: rows.jsonl}}}}
"""


def jpeg(pixels: np.ndarray, quality: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    one, other = fingerprint(first).thumbnail, fingerprint(second).thumbnail
    return float(one @ other)


def test_a_picture_encoded_anew_is_alike_and_another_is_not():
    again = np.asarray(Image.open(io.BytesIO(jpeg(PHOTO))).resize((200, 150)).convert("RGB"))
    assert fingerprint(again).digest != fingerprint(PHOTO).digest
    assert correlation(again, PHOTO) > ALIKE
    others = [np.asarray(picture(words, (400, 300))) for words in ("six plates", "two ships", "9")]
    assert max(correlation(other, PHOTO) for other in others) < ALIKE
    # Its mark is the pixels, whatever file they came from, and the size counts.
    assert fingerprint(PHOTO.copy()).digest == fingerprint(PHOTO).digest
    flat = np.full((20, 10, 3), 255, np.uint8)
    assert fingerprint(flat).digest != fingerprint(flat.reshape(10, 20, 3)).digest


def test_blank_pictures_are_alike_only_if_they_are_the_same():
    noise = np.random.default_rng(0).integers(253, 256, (64, 64, 3), dtype=np.uint8)
    assert fingerprint(noise).thumbnail is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<image>\nWhich square is shaded?", "which SQUARE is  shaded"),
        ("How long is <image1> it?", "How long is it?"),
        ("What is it?\n(A) a cup\n(B) a jug", "What is it?\nA. a jug\nB. a cup"),
        ("Is it even? choice: (A) yes (B) no", "Is it even?"),
        ("Which is next?\nChoices:\nA. 1\nB. 2", "Which is next?"),
        ("What is the period of f?\nGive a decimal number.", "What is the period of f?"),
        ("5 − 3 is what?", "5 - 3 is what?"),
    ],
)
def test_texts_that_are_the_same_question(one, other):
    assert stems(one) & stems(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2 + 3?", "What is 2 - 3?"),
        ("What is 3.5 * 2?", "What is 35 * 2?"),
        ("Which square is shaded?", "Which circle is shaded?"),
        ("Look!\nHow many?", "Look!\nHow few?"),
        ("", " ? "),
    ],
)
def test_texts_that_are_other_questions(one, other):
    assert not stems(one) & stems(other)


@pytest.mark.parametrize(
    "text",
    [
        "(A) " * 250_000,
        "choices " * 125_000,
        "choices" + " " * 10**6,
        "A.\n" * 300_000,
        "ﷺ" * 10**6,
    ],
)
def test_a_hostile_text_is_compared_in_a_moment(text):
    started = time.monotonic()
    stems(text)
    assert time.monotonic() - started < 20


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with benchmarks, and rows of which five are theirs or bad."""
    monkeypatch.chdir(tmp_path)
    invented.vstar(Path("benchmarks"))
    stolen = next(Path("benchmarks").rglob("*.jpg"))
    pixels = np.asarray(Image.open(stolen).convert("RGB"))
    Image.fromarray(pixels).save("pixels.png")  # the same pixels in another file
    Image.fromarray(pixels).resize((pixels.shape[1] * 2, pixels.shape[0] * 2)).save("larger.png")
    Path("torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    picture("mine").save("mine.png")
    rows = [
        ("How many are mine?", "mine.png"),
        ("Whose is it?", "pixels.png"),
        ("Whose is it?", "larger.png"),
        ("<image>WHAT IS THE COLOR OF THE CUP", "mine.png"),
        ("Whose is it?", "torn.png"),
        ("What else is mine?", "mine.png"),
    ]
    lines = [
        json.dumps({"question": text, "images": [image], "answer": "7"}) for text, image in rows
    ]
    Path("rows.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(*more: str, train: str = "rows.jsonl"):
    Path("recipe.yaml").write_text(RECIPE.replace("TRAIN", train))
    against = ["--against", "benchmarks", "--benchmark", "vstar", "--out", "report.jsonl"]
    return CliRunner().invoke(app, ["data", "decontaminate", "recipe.yaml", *against, *more])


def test_the_report_says_which_rows_and_why_and_a_recipe_leaves_them_out(folder):
    result = run()
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in Path("report.jsonl").read_text().splitlines()]
    reasons = {line["row"]: line.get("why", "bad") for line in lines if "row" in line}
    assert reasons == {2: "same picture", 3: "alike picture", 4: "same text", 5: "bad"}
    assert {line["benchmark"] for line in lines if "why" in line} == {"vstar"}
    assert lines[1]["alike"] > ALIKE
    assert lines[-1]["rows"] == 6
    assert lines[-1]["bad"] == 1
    source = "{path: rows.jsonl, without: report.jsonl}"
    recipe = parse_recipe(yaml.safe_load(RECIPE.replace("TRAIN", source)))
    (family,) = recipe.task.families.values()
    task = family.task.load()
    assert sorted(task.train(index).id for index in range(3)) == ["e0-1", "e0-5", "e0-6"]
    # What is held out stays as it is.
    assert len(task.held_out()) == 6


def test_a_source_that_has_changed_or_is_unknown_starts_nothing(folder):
    run()
    with Path("rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"question": "?", "images": ["mine.png"], "answer": "1"}))
    for path, message in (
        ("rows.jsonl", "report.jsonl: was written of 6 rows of rows.jsonl, which has 7; write it"),
        ("./rows.jsonl", "report.jsonl: says nothing about ./rows.jsonl; write it with: axpo data"),
    ):
        source = f"{{path: {path}, without: report.jsonl}}"
        with pytest.raises(AxpoError) as error:
            parse_recipe(yaml.safe_load(RECIPE.replace("TRAIN", source))).task.check_inputs()
        assert message in str(error.value)


def test_a_report_is_not_overwritten_and_none_is_left_of_one_that_failed(folder):
    assert run("--benchmark", "hrbench-4k").exit_code == 1  # its files are not there
    assert not Path("report.jsonl").exists()
    run()
    before = Path("report.jsonl").read_text()
    again = run()
    assert isinstance(again.exception, AxpoError)
    assert str(again.exception) == "report.jsonl: exists; remove it, or give another --out"
    assert Path("report.jsonl").read_text() == before
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("content", ["{", "[1]", '{"row": "x"}', "\udc80"])
def test_what_is_no_report_is_told(folder, content):
    Path("report.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    source = "{path: rows.jsonl, without: report.jsonl}"
    with pytest.raises(AxpoError, match="no report of `axpo data decontaminate`"):
        parse_recipe(yaml.safe_load(RECIPE.replace("TRAIN", source))).task.check_inputs()


def test_short_questions_may_be_compared_by_their_pictures_alone(folder):
    run("--min-words", "50")
    text = Path("report.jsonl").read_text()
    assert "same text" not in text
    assert "same picture" in text


def test_demonstrations_are_compared_and_left_out_too(folder):
    asked = [
        {"type": "image"},
        {"type": "text", "text": "What is the color of the cup?"},
    ]
    answer = {"role": "assistant", "content": "Clear.</think>\\boxed{7}"}
    mine = {"role": "user", "content": "<image>Mine?"}
    chats = [
        {"messages": [mine, answer], "images": ["pixels.png"]},
        {"messages": [{"role": "user", "content": asked}, answer], "images": ["mine.png"]},
        {"messages": [answer], "images": []},
        {"messages": json.dumps([mine, answer]), "images": ["mine.png"]},
    ]
    Path("chats.jsonl").write_text("\n".join(json.dumps(chat) for chat in chats))
    stage = "{steps: 1, batch_size: 1, lr: 1.0e-4, data: {path: chats.jsonl}}"
    result = run("--set", f"sft={{output: out, stages: [{stage}]}}")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in Path("report.jsonl").read_text().splitlines()]
    of_chats = [line for line in lines if line["source"]["path"] == "chats.jsonl"]
    assert [line.get("why", "bad") for line in of_chats[:3]] == [
        "same picture",
        "same text",
        "bad",
    ]
    config = DataConfig(path="chats.jsonl", without="report.jsonl")
    rows = Demonstrations(config, Chat.load(MODEL), 0)
    assert len(rows) == 2
    question, _ = rows.of_row(1)
    assert question.text == "Mine?"
    # Messages have the number of the row in the file.
    with pytest.raises(BadRow, match=r"chats.jsonl, row 3: "):
        rows.of_row(0)
