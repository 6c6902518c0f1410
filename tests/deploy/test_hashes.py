"""The requirements file with hashes that `deploy/hashes` writes."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "hashes_of.py"


def requirements(*items):
    spec = importlib.util.spec_from_file_location("hashes_of", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.requirements({"install": list(items)})


def package(name, file, **hashes):
    source = {"url": f"https://user:key@mirror.example/{file}", "archive_info": {"hashes": hashes}}
    return {"metadata": {"name": name, "version": "1.0"}, "download_info": source}


def test_every_package_has_its_hash_and_no_address():
    checkout = {
        "metadata": {"name": "axpo", "version": "0.1.0"},
        "download_info": {"url": "file:///here", "dir_info": {}},
    }
    lines = requirements(
        package("torch", "torch-1.0.whl#sha256=aa", sha256="aa"),
        package("Deepspeed", "deepspeed-1.0.tar.gz", sha256="bb"),
        checkout,
    )
    assert lines == [
        "Deepspeed==1.0 --hash=sha256:bb  # source",
        "torch==1.0 --hash=sha256:aa  # wheel",
    ]


def test_a_package_without_a_hash_is_refused():
    with pytest.raises(ValueError, match="torch: no SHA-256"):
        requirements(package("torch", "torch-1.0.whl", md5="aa"))
