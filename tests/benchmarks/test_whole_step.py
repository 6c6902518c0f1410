"""What TRL is given for whole steps beside ours."""

import json
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from benchmarks import bench_whole_step
from benchmarks.bench_whole_step import Seconds, median, run_ours
from benchmarks.trl_run import SHOWN, SHOWN_WITH_CALLS, Clock, Zoom

TEMPLATE = Path("axpo/models/qwen3-vl-tiny/chat_template.jinja")
TOKENS = {"generated_tokens": 80}


def test_trls_zoom_cuts_what_the_box_says_and_can_zoom_into_a_crop() -> None:
    image = np.arange(200 * 100 * 3, dtype=np.uint8).reshape(200, 100, 3)
    zoom = Zoom()
    zoom.reset(images=[Image.fromarray(image)])
    # The left upper quarter, 100 x 50 pixels; then the lower half of that.
    (first,) = zoom.image_zoom_in([0, 0, 500, 500])
    (second,) = zoom.image_zoom_in([0, 500, 1000, 1000], img_idx=1)
    assert np.array_equal(np.asarray(first["image"]), image[:100, :50])
    assert np.array_equal(np.asarray(second["image"]), image[50:100, :50])


def test_the_template_for_trl_shows_calls_and_is_the_models_own_without_them() -> None:
    own = TEMPLATE.read_text(encoding="utf-8")
    changed = own.replace(SHOWN, SHOWN_WITH_CALLS)
    call = {"function": {"name": "image_zoom_in", "arguments": {"img_idx": 0}}}
    asked = {"role": "user", "content": "Which digit?"}
    answered = {"role": "assistant", "content": "I look closer."}
    calling = answered | {"tool_calls": [call]}
    assert _rendered(changed, [asked, answered]) == _rendered(own, [asked, answered])
    assert _rendered(changed, [asked, calling]).endswith(
        "I look closer.<tool_call>\n" + json.dumps(call["function"]) + "\n</tool_call><|im_end|>\n"
    )


def test_the_clock_adds_up_what_a_method_takes_in_a_step(tmp_path: Path) -> None:
    class Worker:
        def work(self) -> int:
            return 7

    worker, clock = Worker(), Clock(tmp_path / "steps.jsonl")
    clock.timed(worker, "work", "working")
    for _ in range(2):
        clock.begin()
        assert worker.work() == 7
        clock.add("tokens", 5)
        clock.end()
    lines = (tmp_path / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines):
        assert line["tokens"] == 5
        assert 0 < line["working"] <= line["seconds"]


def test_the_median_step_is_taken_number_by_number() -> None:
    steps = [Seconds(5, 1, 80), Seconds(3, 2, 90), Seconds(4, 9, 70)]
    assert median(steps) == Seconds(4, 2, 80)


def _rendered(template: str, messages: list[dict[str, object]]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    rendered: str = environment.from_string(template).render(messages=messages)
    return rendered


def test_a_step_of_our_own_run_is_its_rollouts_learning_and_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"step": 0, "time/start": 40.0, "time/sync": 9.0},
        {"step": 1, "time/rollout": 2.0, "time/learn": 1.0, "time/sync": 0.5, **TOKENS},
        {"step": 1, "time/evaluate": 7.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr(bench_whole_step, "run_recipe", lambda *_: tmp_path)
    assert run_ours(tmp_path) == [Seconds(3.5, 2.0, 80)]
