"""Build the site of the documents: `make docs`, or `python docs/site/build.py` with its packages.

The pages are copied as they lie in the checkout, with the files that they link to, so that a link
works here and there. One page of the API is added for each package, from its docstrings. A warning
is an error.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
PAGES = BUILD / "docs"
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
PACKAGES = ("rollout_workers", "resampler", "learner", "tool_server", "axpo")
NOT_READ = ("axpo/shipped/deploy", "axpo/shipped/starter", "axpo/models")


def main() -> int:
    """Build the site into build/site and return the exit code."""
    config = yaml.safe_load(Path(__file__).with_name("mkdocs.yml").read_text(encoding="utf-8"))
    shutil.rmtree(PAGES, ignore_errors=True)
    guide = next(section["Guide"] for section in config["nav"] if "Guide" in section)
    named = {str(page) for page in pages_of(config["nav"])}
    every = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
    guide += [page for page in every if page not in named]
    copy_pages(config["nav"])
    section = next(section for section in config["nav"] if "API" in section)
    section["API"] = [write_api(package) for package in packages()]
    config |= {"docs_dir": str(PAGES), "site_dir": str(BUILD / "site")}
    file = BUILD / "mkdocs.yml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, "--config-file", str(file)], env=environment, check=False)
    if done.returncode == 0:
        print(f"site {BUILD / 'site'}/index.html")
    return done.returncode


def copy_pages(nav: object) -> None:
    """Copy the pages of the navigation, and all that they link to."""
    for page in pages_of(nav):
        copy(page)
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in LINK.findall(text):
            linked = (ROOT / page).parent / target
            if linked.is_file():
                copy(linked.resolve().relative_to(ROOT))


def pages_of(nav: object) -> list[Path]:
    """Return the pages that a navigation names, however deep."""
    if isinstance(nav, str):
        return [Path(nav)]
    sections = nav.values() if isinstance(nav, dict) else nav
    assert not isinstance(sections, str)
    return [page for section in sections for page in pages_of(section)]


def copy(page: Path) -> None:
    """Copy a file of the checkout to its place among the pages."""
    target = PAGES / page
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / page, target)


def packages() -> list[Path]:
    """Return the folders of all packages, relative to the checkout, in the order of reading."""
    found = []
    for name in PACKAGES:
        inside = sorted((ROOT / name).rglob("__init__.py"))
        folders = [file.parent.relative_to(ROOT) for file in inside]
        found += [folder for folder in folders if not str(folder).startswith(NOT_READ)]
    return found


def write_api(package: Path) -> str:
    """Write the page of a package's modules and return its place among the pages."""
    dotted = ".".join(package.parts)
    lines = [f"# {dotted}\n", f"::: {dotted}\n    options: {{members: false, heading_level: 2}}\n"]
    for file in sorted((ROOT / package).glob("*.py")):
        if not file.stem.startswith("_"):
            lines.append(f"::: {dotted}.{file.stem}\n")
    page = Path("api") / f"{dotted}.md"
    (PAGES / page).parent.mkdir(parents=True, exist_ok=True)
    (PAGES / page).write_text("\n".join(lines), encoding="utf-8")
    return str(page)


if __name__ == "__main__":
    sys.exit(main())
