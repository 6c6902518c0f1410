"""Whole GRPO steps of TRL on the demo's model, questions and tool; `bench_whole_step` starts it.

    torchrun --nproc-per-node 2 -m benchmarks.trl_run RECIPE FILE [--set KEY=VALUE ...]

TRL is at its best here with a process for each core, one thread in each. FILE gets one line of JSON
a step. Four things had to be given to TRL 1.16; none of them costs time:

- a chat template that shows the calls of earlier turns: TRL refuses the model's own, which does not
- Qwen3's response template, by which TRL reads calls
- the schema of our tool, so that prompts are the same token by token
- a class that runs the tool
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axpo.config import Recipe, load_recipe
from axpo.tasks import Task
from rollout_workers.trajectory import Question, pixels
from tool_server.server import schema
from tool_server.tool import ToolCall
from tool_server.zoom import ImageZoomIn, ZoomArguments
from tool_server.zoom import image_zoom_in as zoom_in

TOOL = "image_zoom_in"
SHOWN = "render(message.content) + '<|im_end|>\\n' -}}\n{%- endif -%}\n{%- endfor -%}"
"""How the model's chat template shows a message, at its end."""
SHOWN_WITH_CALLS = """\
render(message.content) -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}"""
MICRO_BATCH = 16
"""Rollouts of a micro-batch of a process."""


class Zoom:
    """The zoom tool as TRL's environment, one for each rollout."""

    def reset(self, images: Sequence[Image.Image], **_: Any) -> None:
        """Begin a rollout with the images of its question."""
        self._images = [np.asarray(image) for image in images]

    def image_zoom_in(self, bbox_2d: list[float], label: str = "", img_idx: int = 0) -> list[Any]:
        """Zoom in.

        Args:
            bbox_2d: the box.
            label: name of the object.
            img_idx: number of the image.
        """
        arguments = ZoomArguments(bbox_2d=bbox_2d, label=label, img_idx=img_idx)
        _, (crop,) = zoom_in(ToolCall(arguments, tuple(self._images)), ImageZoomIn())
        self._images.append(crop)
        return [{"type": "image", "image": Image.fromarray(crop)}]


class Clock:
    """Seconds and tokens of each step, written by the first process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writes = os.environ.get("RANK", "0") == "0"
        self._step: dict[str, float] = {}
        self._started = 0.0

    def timed(self, owner: Any, method: str, name: str) -> None:
        """Add what calls of a method take to the step's seconds under a name."""
        run: Callable[..., Any] = getattr(owner, method)

        @wraps(run)
        def measured(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return run(*arguments, **options)
            finally:
                self.add(name, time.perf_counter() - started)

        setattr(owner, method, measured)

    def add(self, name: str, value: float) -> None:
        """Add to a number of this step."""
        self._step[name] = self._step.get(name, 0.0) + value

    def begin(self) -> None:
        """Begin a step."""
        self._step = {}
        self._started = time.perf_counter()

    def end(self) -> None:
        """End a step and write its line."""
        self.add("seconds", time.perf_counter() - self._started)
        if self._writes:
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(self._step) + "\n")


def main() -> None:
    """Train, and write the seconds of each step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    clock = Clock(arguments.file)
    with tempfile.TemporaryDirectory() as folder:
        trainer(recipe, clock, folder).train()


def trainer(recipe: Recipe, clock: Clock, folder: str) -> Any:
    """Return TRL's trainer of a recipe.

    Args:
        recipe: what is trained, and how long.
        clock: gets the seconds of every step.
        folder: for what TRL writes.
    """
    import torch
    from transformers import Qwen3VLForConditionalGeneration
    from trl import GRPOTrainer

    torch.set_num_threads(1)
    task = recipe.task.load()
    count = recipe.steps * recipe.questions_per_step
    # The very questions of our own run, in its order.
    questions = [task.train(index) for index in range(count)]
    built = GRPOTrainer(
        Qwen3VLForConditionalGeneration.from_pretrained(
            recipe.model, dtype=torch.float32, attn_implementation="sdpa"
        ),
        [_reward(task, questions)],
        args=_settings(recipe, folder),
        train_dataset=_data(task, questions),
        processing_class=_processor(recipe.model),
        callbacks=[_callback(clock)],
        environment_factory=Zoom,
    )
    clock.timed(built, "_generate", "generation")
    _count_tokens(built, clock)
    return built


def _settings(recipe: Recipe, folder: str) -> Any:
    """Return TRL's settings of a recipe."""
    from trl import GRPOConfig

    rollout, learner = recipe.rollout, recipe.learner
    rollouts = recipe.questions_per_step * rollout.n
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        # Every parameter is used: no need to look for others in each backward pass.
        ddp_find_unused_parameters=False,
        loss_type="grpo",
        beta=learner.kl_beta,
        learning_rate=learner.lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=rollouts // processes // MICRO_BATCH,
        num_generations=rollout.n,
        temperature=rollout.temperature,
        top_p=1.0,
        top_k=0,
        max_completion_length=rollout.max_turns * rollout.max_turn_tokens,
        max_tool_calling_iterations=rollout.max_turns - 1,
        max_steps=recipe.steps,
        shuffle_dataset=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=recipe.seed,
    )


def _data(task: Task, questions: Sequence[Question]) -> Any:
    from datasets import Dataset

    rows = []
    for number, question in enumerate(questions):
        messages = [
            {"role": "system", "content": task.system},
            {"role": "user", "content": question.text},
        ]
        images = [Image.fromarray(pixels(image)) for image in question.images]
        rows.append({"prompt": messages, "images": images, "number": number})
    return Dataset.from_list(rows)


def _reward(task: Task, questions: Sequence[Question]) -> Callable[..., list[float]]:
    def reward(completions: Sequence[Any], number: Sequence[int], **_: Any) -> list[float]:
        pairs = zip(completions, number, strict=True)
        return [task.verify(questions[i], _text(completion)) for completion, i in pairs]

    return reward


def _text(completion: Sequence[dict[str, Any]]) -> str:
    """Return the text of a completion's last message."""
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _processor(model: str) -> Any:
    """Return the model's processor, with what TRL needs of it and of its tokenizer."""
    import transformers.utils.chat_template_utils as templates
    from transformers import AutoProcessor
    from trl.chat_template_utils import qwen3_template

    processor = AutoProcessor.from_pretrained(model)
    template = processor.chat_template.replace(SHOWN, SHOWN_WITH_CALLS)
    if template == processor.chat_template:
        raise ValueError(f"{model}: its chat template does not end a message as expected")
    processor.chat_template = processor.tokenizer.chat_template = template
    processor.tokenizer.response_template = qwen3_template
    of_function = templates.get_json_schema
    offered = schema(ImageZoomIn().open(TOOL))

    def of_tool(function: Callable[..., Any]) -> dict[str, Any]:
        return offered if function.__name__ == TOOL else of_function(function)

    templates.get_json_schema = of_tool
    return processor


def _callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    return Steps()


def _count_tokens(built: Any, clock: Clock) -> None:
    """Let the clock count the policy's tokens of this process."""
    generate = built._generate

    def counted(prompts: Any) -> Any:
        out = generate(prompts)
        _, completions, masks = out[:3]
        # Without a call in the batch there is no mask.
        clock.add("tokens", sum(map(sum, masks)) if masks else sum(map(len, completions)))
        clock.add("longest", max(map(len, completions)))
        return out

    built._generate = counted


if __name__ == "__main__":
    main()
