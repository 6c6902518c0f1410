"""What the documents name is there: files, functions in them, and links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = [
    *Path(".").glob("*.md"),
    *Path("docs").glob("*.md"),
    *Path("deploy").glob("*.md"),
    *Path("examples").glob("*.md"),
]
PLACE = re.compile(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|md|yaml|jinja))(?:: (\w+)(?:\.(\w+))?)?`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_names_places_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for path, name, member in PLACE.findall(text):
        if path.startswith("runs/"):
            continue  # what a run writes
        file = next((file for file in (Path(path), page.parent / path) if file.exists()), None)
        assert file is not None, f"{page}: {path}"
        source = file.read_text(encoding="utf-8") if name else ""
        for wanted in filter(None, (name, member)):
            assert re.search(rf"(def|class) {wanted}\b", source), f"{page}: {path}: {wanted}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_links_to_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_warnings():
    command = ["make", "docs", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "WARNING -" not in said
    page = Path("build/site/api/learner/index.html").read_text(encoding="utf-8")
    assert 'id="learner.credit.credit"' in page
    assert Path("build/site/docs/method/index.html").exists()
