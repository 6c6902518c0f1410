"""What the commands say of data before anything starts: the task's, and that of fine-tuning."""

import json

import pytest

from axpo import cli
from axpo.errors import AxpoError
from tests.axpo.tasks.bad_rows import FOUND_LATE, KINDS, encoded, row, write_rows

DEBUG = "deploy/recipes/debug.yaml"
CHAT = {
    "messages": [
        {"role": "user", "content": "<image>Which digit?"},
        {"role": "assistant", "content": "Clear.</think>\\boxed{7}"},
    ],
    "images": ["good.png"],
}


@pytest.fixture
def said(monkeypatch, capsys):
    """Return a function that runs a command and returns its exit code, output and error."""

    def run(command, **settings):
        options = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
        flags = ["--images"] if command == "images" else []
        name = "check" if command == "images" else command
        monkeypatch.setattr("sys.argv", ["axpo", name, DEBUG, *options, *flags])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def no_start(monkeypatch):
    """Let no command start anything."""

    def start(*arguments, **options):
        raise AxpoError("started")

    monkeypatch.setattr("axpo.session.ray_session", start)


def stages(file, **more):
    stage = {"steps": 1, "batch_size": 1, "lr": 1e-4, "data": {"path": str(file)} | more}
    return {"output": str(file) + ".model", "stages": [stage]}


def chats(folder, *rows):
    (folder / "good.png").write_bytes(encoded())
    (folder / "noise.png").write_bytes(b"no image")
    file = folder / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("command", ["check", "sft"])
def test_demonstrations_are_checked_before_a_stage_begins(tmp_path, said, no_start, command):
    bad = CHAT | {"messages": CHAT["messages"][:1]}
    broken = CHAT | {"images": ["noise.png"]}
    file = chats(tmp_path, *[CHAT] * 8, bad, broken)
    code, out, err = said(command, sft=stages(file))
    assert f"set aside in a run: {file}, row 9: messages: expected a message of the assi" in out
    assert f"set aside in a run: {file}, row 10: images: {tmp_path}/noise.png is not a" in out
    assert (code, "started" in err) == ((0, False) if command == "check" else (2, True))
    # Too many are refused, and so are those that are not there.
    code, _, err = said(command, sft=stages(file, max_bad_rows=0.1))
    assert code == 2
    assert "row 9: messages: expected a message of the assistant at the end; 2 of 10 rows" in err
    code, _, err = said(command, sft=stages(tmp_path / "none.jsonl"))
    assert (code, err.strip()) == (2, f"error {tmp_path}/none.jsonl: no such file")


def test_a_row_of_fine_tuning_must_fit_the_context(tmp_path, said):
    long = {"role": "user", "content": "<image>" + "Which digit? " * 500}
    file = chats(tmp_path, *[CHAT] * 4, CHAT | {"messages": [long, CHAT["messages"][1]]})
    _, out, _ = said("check", sft=stages(file))
    assert f"set aside in a run: {file}, row 5: 4 tokens of images and " in out
    assert "rollout.max_context_tokens is 1,024" in out


def test_check_of_all_images_says_what_the_quick_check_does_not_see(tmp_path, said):
    data = tmp_path / "data"
    data.mkdir()
    file = write_rows(data, 300, {FOUND_LATE: KINDS[FOUND_LATE]})
    task = {"kind": "dataset", "train": str(file), "held_out": str(file)}
    settings = {"task": task, "logging.root": str(tmp_path), "sft": stages(chats(data, CHAT))}
    code, out, _ = said("check", **settings)
    assert (code, FOUND_LATE in out) == (0, False)
    # `chats` made the image another one: now no reader takes it.
    code, out, _ = said("images", **settings)
    assert code == 0
    assert f"images of {file}: 301 of 301 rows" in " ".join(out.split())
    assert f"set aside in a run: {file}, row 2: images: {data}/noise.png" in out


def test_held_out_rows_are_checked_like_those_of_training(tmp_path, said):
    (tmp_path / "good.png").write_bytes(encoded())
    for name, answer in (("train", "7"), ("test", "\\boxed{7}")):
        rows = [row(), row(), row(), row(answer=answer)]
        text = "".join(json.dumps(one) + "\n" for one in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    train, test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    code, out, _ = said("check", task={"kind": "dataset", "train": train, "held_out": test})
    assert code == 0
    assert f"set aside in a run: {test}, row 4: answer: expected the answer alone" in out
    assert f"{train}, row" not in out
