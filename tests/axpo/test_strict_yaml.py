"""Recipes that are no recipes: keys twice, bombs, other encodings. One line, and no waiting."""

import time

import pytest

from axpo.config import load_recipe, parse_recipe
from axpo.errors import AxpoError
from axpo.evaluation.suite import parse_judge
from axpo.record.run import RunDirectory
from axpo.strict_yaml import read_yaml

DEBUG = "deploy/recipes/debug.yaml"


def bomb(levels: int, wide: int) -> str:
    lines = ["a0: &a0 x"]
    for level in range(1, levels):
        aliases = ", ".join([f"*a{level - 1}"] * wide)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


def bomb_of_merges(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        below = f"*a{level - 1}"
        lines.append(f"a{level}: &a{level} {{<<: [{below}, {below}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nname: a\nseed: 2", "line 3: the key 'seed' is there twice"),
        ("rollout: {n: 4, n: 8}", "line 1: the key 'n' is there twice"),
        ("a: [{b: 1, b: 1}]", "line 1: the key 'b' is there twice"),
        ('"seed": 1\nseed: 1', "line 2: the key 'seed' is there twice"),
        # 2 kB that stand for a billion values, or more.
        (bomb(12, 9), "more than 100,000 values, those of aliases included"),
        (bomb(40, 2), "more than 100,000 values"),
        # An alias inside of what it stands for.
        ("a: &a [*a]", "more than 50 lists and sections inside each other"),
        ("a: &a {b: *a}", "more than 50 lists and sections"),
        ("a: " + "[" * 20_000, "more than 50 lists and sections"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 lists and sections"),
        ("- " * 5000 + "a", "more than 50 lists and sections"),
        ("a: " + "x" * 2_000_000, "expected at most 1,048,576"),
        ("a: [1, 2", "not YAML: "),
        ("a: !!python/object:os.system [ls]", "not YAML: could not determine a constructor"),
        ("a: *b", "not YAML: found undefined alias"),
        ("a: 1\n---\na: 2", "not YAML: expected a single document"),
        ("a: \x00", "not YAML: "),
        # Merged keys are copied: 2 kB that would be a section of a billion keys.
        (bomb_of_merges(30), "more than 100,000 values"),
        ("a: !!bool maybe", "not YAML: a tag that its value does not fit"),
        ("a: !!int ''", "not YAML: a tag that its value does not fit"),
        ("a: !!timestamp abc", "not YAML: a tag that its value does not fit"),
        ("a: 2024-13-45", "not YAML: a value that cannot be read"),
        ("a: " + "9" * 5000, "not YAML: a value that cannot be read"),
        ('a: "\\ud83d"', "half a surrogate pair (\\ud83d)"),
        ('"\\ud83d": 1', "half a surrogate pair (\\ud83d)"),
    ],
)
def test_what_is_refused(tmp_path, text, said):
    started = time.process_time()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_yaml(text)
    assert said in str(caught.value)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(AxpoError) as caught:
        load_recipe(file)
    message = str(caught.value)
    assert message.startswith(f"recipe {file}: ")
    assert "\n" not in message
    assert len(message) < 600
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "the key 'a' is there twice"),
        (bomb_of_merges(30), "more than 100,000 values"),
        ("a: !!bool maybe", "a tag that its value does not fit"),
    ],
)
def test_the_recipe_of_a_run_and_the_file_of_a_judge_are_read_as_strictly(tmp_path, text, said):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(AxpoError, match=rf"recipe\.yaml: not readable: .*{said}"):
        RunDirectory.open(tmp_path).recipe()
    with pytest.raises(AxpoError, match=rf"--judge: .*{said}"):
        parse_judge(str(file))


def test_aliases_and_merged_keys_within_reason_are_read():
    text = "base: &base {n: 4, k: 2}\nown: {<<: *base, n: 8}\nboth: [*base, *base]"
    base = {"n": 4, "k": 2}
    assert read_yaml(text) == {"base": base, "own": {"n": 8, "k": 2}, "both": [base, base]}
    assert read_yaml("") is None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"name: caf\xe9", "not UTF-8 at byte 10"),
        ("name: é".encode("utf-16"), "not UTF-8 at byte 1"),
        (b"#" * 3_000_000, "larger than 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, raw, said):
    (tmp_path / "recipe.yaml").write_bytes(raw)
    with pytest.raises(AxpoError, match=rf"recipe\.yaml: {said}$"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_byte_order_mark_is_read_over(tmp_path):
    with open(DEBUG, "rb") as file:
        (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + file.read())
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(DEBUG)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task={kind: small_digit, kind: mixed}", "--set task: line 1: the key 'kind' is there"),
        ("steps=[1, 2", "--set steps: not YAML: "),
        ("seed.x=1", "--set seed.x: seed is a value, not a section"),
        ("x" * 9000, "expected key=value"),
        ("steps=" + "x" * 9000, "steps='xxxx"),
        ("task.kind=" + "x" * 9000, "task.kind='xxxx"),
        ("task={kind: small_digit, " + "x" * 900 + ": 1}", "unknown key"),
        ("learner.objective={name: " + "x" * 9000 + "}", "learner.objective.name='xxxx"),
        ("learner.objective=" + "x" * 9000 + ":f", "cannot import xxxx"),
        ("learner.objective=json:" + "x" * 9000, "json has no xxxx"),
    ],
)
def test_a_value_of_a_command_line_is_shown_short(override, said):
    with pytest.raises(AxpoError) as caught:
        load_recipe(DEBUG, [override])
    assert said in str(caught.value)
    assert all(len(line) < 800 for line in str(caught.value).splitlines())


def test_a_long_value_of_a_section_is_shown_short():
    with pytest.raises(AxpoError) as caught:
        parse_recipe({"name": "x", "task": {"kind": "small_digit", "digit": "y" * 10_000}})
    assert all(len(line) < 400 for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("model", "name", "revision"),
    [
        ("Qwen/Qwen3-VL-4B-Thinking", "Qwen/Qwen3-VL-4B-Thinking", None),
        ("owner/name@abc123", "owner/name", "abc123"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
    ],
)
def test_a_model_of_the_hub_can_be_pinned(monkeypatch, model, name, revision):
    from axpo.config import looks_local
    from axpo.session import local_path

    asked = {}

    def download(repository, revision):
        asked.update(repository=repository, revision=revision)
        return "folder"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    local_path.cache_clear()
    assert not looks_local(model)
    assert local_path(model) == "folder"
    assert asked == {"repository": name, "revision": revision}
    local_path.cache_clear()
