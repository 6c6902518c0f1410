"""What comes along is found by name from any folder: recipes, models, a starter project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axpo import set_up
from axpo.cli import app
from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.shipped import MODELS, model_folder, package_path, recipe_names, recipe_summary

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(*arguments, code=0):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def command(*arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "axpo.cli", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_recipes_are_listed_with_what_they_are():
    files = sorted(file.stem for file in Path("deploy/recipes").glob("*.yaml"))
    assert recipe_names() == files
    lines = said("recipes")
    assert all(name in lines for name in files)
    assert recipe_summary("debug") == "Every part once: two steps of four questions."


def test_a_recipe_is_read_by_name_from_any_folder(elsewhere):
    recipe = load_recipe("demo", ["steps=3"])
    assert (recipe.name, recipe.steps) == ("demo", 3)
    assert recipe.model == str(MODELS / "qwen3-vl-tiny")
    recipe.check_inputs()


def test_in_the_checkout_a_recipe_reads_as_it_is_written():
    assert load_recipe("demo").model == "axpo/models/qwen3-vl-tiny"
    assert load_recipe("demo") == load_recipe("deploy/recipes/demo.yaml")


def test_a_file_of_ones_own_goes_before_a_name(elsewhere):
    said("recipes", "copy", "debug", "demo")
    assert load_recipe("demo").name == "debug"


@pytest.mark.parametrize(
    ("name", "meant"), [("demmo", "demo"), ("deploy/recipes/debug.yaml", "debug")]
)
def test_a_recipe_that_is_not_there_names_the_one_that_was_meant(name, meant, elsewhere):
    expected = f"recipe {name}: no such file, and none of `axpo recipes`; did you mean {meant}\\?"
    with pytest.raises(AxpoError, match=expected):
        load_recipe(name)


def test_names_lead_nowhere_else(elsewhere):
    for name in ("../recipes/demo", "/demo", "demo.yaml", ""):
        with pytest.raises(AxpoError, match=r"no such file|is a folder"):
            load_recipe(name)


def test_a_recipe_is_copied_once(elsewhere):
    said("recipes", "copy", "demo")
    source = CHECKOUT / "deploy/recipes/demo.yaml"
    assert (elsewhere / "demo.yaml").read_bytes() == source.read_bytes()
    with pytest.raises(AxpoError, match=r"demo\.yaml: exists"):
        CliRunner().invoke(app, ["recipes", "copy", "demo"], catch_exceptions=False)
    with pytest.raises(AxpoError, match=r"recipe dem0: expected one of debug, demo, "):
        CliRunner().invoke(app, ["recipes", "copy", "dem0"], catch_exceptions=False)


def test_a_name_with_brackets_is_printed_as_it_is(elsewhere):
    assert said("recipes", "copy", "demo", "my[red]recipe.yaml") == "recipe my[red]recipe.yaml\n"
    project = "project my[red]project\n   cd my[red]project\n"
    assert said("init", "my[red]project").startswith(project)


def test_embedded_models_are_found_by_name(elsewhere):
    tiny = str(MODELS / "qwen3-vl-tiny")
    assert model_folder("qwen3-vl-tiny") == tiny
    assert model_folder("axpo/models/qwen3-vl-tiny") == tiny
    assert model_folder("/gone/site-packages/axpo/models/qwen3-vl-tiny") == tiny
    for other in ("owner/qwen3-vl-tiny", "qwen3-vl-huge", "axpo/models/none", "models/x", ".", ""):
        assert model_folder(other) == other
    Path("qwen3-vl-tiny").mkdir()
    assert model_folder("qwen3-vl-tiny") == "qwen3-vl-tiny"


def test_data_of_the_package_is_found_by_its_path(elsewhere):
    wines = Path("axpo/tasks/embedded/wines.jsonl")
    assert package_path(wines) == CHECKOUT / wines
    for other in (Path("wines.jsonl"), Path("axpo/none"), Path("axpo/../LICENSE"), Path("/axpo")):
        assert package_path(other) == other
    said("index", "build", wines, "--out", "wines.index")
    assert any(Path("wines.index").iterdir())


@pytest.mark.slow
def test_a_starter_project_passes_its_check(tmp_path):
    folder = tmp_path / "my project"
    started = command("init", folder, folder=tmp_path)
    assert started.returncode == 0, started.stderr
    checked = command("check", "recipe.yaml", folder=folder)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "my-project: axpo, 3 steps of 4 questions" in checked.stdout
    assert "warning " not in checked.stdout
    assert (folder / ".gitignore").read_text().startswith("runs/\n")
    # The tool keeps what is red and nothing else.
    arguments = ("keep_color", '{"color": "red"}', "recipe.yaml", "--image", "data/train-0.png")
    called = command("tools", "call", *arguments, folder=folder)
    assert called.returncode == 0, called.stdout + called.stderr
    assert colors(folder / "keep_color_0.png") == {(255, 0, 0), (255, 255, 255)}


def colors(picture):
    from PIL import Image

    return {color for _, color in Image.open(picture).convert("RGB").getcolors()}


def test_a_starter_project_spares_what_is_there(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused = command("init", tmp_path, folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.strip() == f"error {tmp_path}: expected a new or an empty folder"
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_below_tmp_the_toolbox_is_a_link_to_where_the_jail_sees_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    usual = tmp_path / "toolbox"
    folder = set_up._toolbox_folder(usual)
    try:
        assert usual.resolve() == folder
        assert folder.parent == Path("/var/tmp")
        assert folder.stat().st_mode & 0o777 == 0o755
        assert set_up._toolbox_folder(usual) == folder  # the second time it is there
    finally:
        folder.rmdir()


def test_an_environment_that_is_not_finished_is_told_from_other_failures():
    nms = RuntimeError("operator torchvision::nms does not exist")
    model = ModuleNotFoundError("Could not import module 'Qwen3VLForConditionalGeneration'")
    model.__cause__ = nms
    library = OSError("/site-packages/torchaudio/lib/libtorchaudio.so: undefined symbol: x")
    assert set_up.why_unfinished(model) == "torchvision does not fit torch"
    assert set_up.why_unfinished(library) == "torchaudio does not fit torch"
    for other in (None, OSError("no space left"), ModuleNotFoundError("No module named 'ray'")):
        assert set_up.why_unfinished(other) is None


def test_elsewhere_the_toolbox_is_in_the_environment(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/opt/environment")
    usual = Path("/opt/environment/toolbox")
    assert set_up._toolbox_folder(usual) == usual
