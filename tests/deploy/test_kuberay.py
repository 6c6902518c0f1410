"""The KubeRay manifest is what the operator's resource definition asks for.

KubeRay's own definition is used if AXPO_RAYJOB_CRD names its file, `ray.io_rayjobs.yaml` of the
operator's chart. Otherwise `rayjob.schema.yaml` beside this file is, which allows what the manifest
uses and nothing else.
"""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

MANIFEST = Path("deploy/kuberay/rayjob.yaml")
OWN = Path(__file__).with_name("rayjob.schema.yaml")
CRD = os.environ.get("AXPO_RAYJOB_CRD")
FREE = ("labels", "rayStartParams", "requests", "limits")
"""Whoever writes a manifest chooses the keys in these."""


def job() -> dict[str, Any]:
    documents = yaml.safe_load_all(MANIFEST.read_text())
    return next(document for document in documents if document["kind"] == "RayJob")


def closed(schema: Any) -> Any:
    """Return a Kubernetes schema as a JSON schema that allows no unknown field."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    inner = {key: closed(value) for key, value in schema.items() if key != "format"}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


def of_kuberay() -> Any:
    """Return KubeRay's definition of the version that the manifest asks for."""
    definition = yaml.load(Path(str(CRD)).read_text(), Loader=yaml.CSafeLoader)
    versions = {version["name"]: version for version in definition["spec"]["versions"]}
    schema = closed(versions["v1"]["schema"]["openAPIV3Schema"])
    # The metadata of the resource itself are Kubernetes' own, and left open in a definition.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


SCHEMAS = [
    pytest.param(lambda: yaml.safe_load(OWN.read_text()), id="own"),
    pytest.param(
        of_kuberay,
        id="KubeRay",
        marks=pytest.mark.skipif(CRD is None, reason="AXPO_RAYJOB_CRD names no definition"),
    ),
]


@pytest.fixture(scope="module", params=SCHEMAS)
def validator(request: pytest.FixtureRequest) -> Draft202012Validator:
    return Draft202012Validator(request.param())


def places(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every field of the manifest."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*above, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*above, key)
            if key not in FREE:
                yield from places(item, (*above, key))


def misspelled(manifest: dict[str, Any], place: tuple[str | int, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(manifest)
    section: Any = changed
    for part in place[:-1]:
        section = section[part]
    section[f"{place[-1]}s"] = section.pop(place[-1])
    return changed


def test_the_manifest_is_valid(validator: Draft202012Validator) -> None:
    faults = [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(job())]
    assert faults == []


def test_a_misspelled_field_is_found_wherever_it_is(validator: Draft202012Validator) -> None:
    manifest = yaml.safe_load(yaml.dump(job(), Dumper=WithoutAliases))
    every = [place for place in places(manifest) if "metadata" not in place]
    assert len(every) > 100
    missed = [place for place in every if validator.is_valid(misspelled(manifest, place))]
    assert missed == []


class WithoutAliases(yaml.SafeDumper):
    """Write in full what the manifest repeats by aliases, so that one place can be changed."""

    def ignore_aliases(self, data: object) -> bool:
        return True
