"""A whole training step with mock engines and a mock learner.

Ray, agent loop, tool server, resampler and credit are real.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from axpo.config import parse_recipe
from axpo.evaluation.held_out import complete, held_out
from axpo.tasks.verifiers import exact_match
from axpo.training.actors import Actors
from axpo.training.cursor import Cursor
from axpo.training.flow import Flow
from axpo.training.policy import Policy
from axpo.training.trainer import measurements, train_step
from benchmarks.study.proposition import probe
from resampler.resampler import start_resampler
from rollout_workers.chat import Chat
from rollout_workers.interfaces import Generation
from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from rollout_workers.slots import EngineLoad
from rollout_workers.trajectory import EndReason, Group, PolicySegment, Question, Trajectory
from rollout_workers.worker import RolloutWorker
from tool_server.pool import start_tool_servers

MODEL = "axpo/models/qwen3-vl-tiny"
RECIPE = parse_recipe(
    {
        "name": "mock",
        "model": MODEL,
        "task": {"kind": "small_digit"},
        "steps": 8,
        "questions_per_step": 2,
        "rollout": {
            "n": 4,
            "max_context_tokens": 1024,
            "cpus_per_worker": 0.1,
            "engine": {"weight_transfer": "shared_memory"},
        },
        "resampler": {"k": 2, "budget": {"ratio": 0.5}},
        "evaluation": {"tools": {"echo": {"function": "tests.tool_server.user_tools:echo"}}},
    }
)


class ScriptedEngine:
    """Every second rollout zooms at [0, 0, 500, 500] and fails.

    A zoom at [500, 0, 1000, 500], which only forks ask for, reads 7.
    """

    def __init__(self, settings, tokens):
        self.chat, self.asked, self.version = Chat.load(settings.model), 0, 0

    async def generate(self, prompt_ids, images, sampling):
        ids = [self.chat.encode_policy(reply) for reply in self.replies(prompt_ids, images)]
        return [self.generation(reply, len(prompt_ids)) for reply in ids]

    def replies(self, prompt_ids, images):
        text = self.chat.decode(prompt_ids)
        turn = text.rpartition("<|im_start|>assistant")[2]
        if turn.endswith("<tool_call>"):
            return [arguments((500, 0, 1000, 500)), arguments((0, 500, 500, 1000))]
        if len(images) == 2:
            return [answer("7" if "[500, 0, 1000, 500]" in text else "unknown")]
        self.asked += 1
        if self.asked % 2:
            return [call((0, 0, 500, 500))]
        return [answer("7" if self.asked % 4 else "3")]

    def generation(self, ids, prompt_tokens):
        return Generation(
            token_ids=ids,
            logprobs=np.full(len(ids), -0.5, np.float32),
            entropies=None,
            finished=True,
            prompt_tokens=prompt_tokens,
            cached_tokens=0,
            policy_version=self.version,
        )

    async def finish_weight_update(self, version):
        self.version = version
        return version

    async def alive(self):
        pass

    def load(self):
        return EngineLoad()

    def stats(self):
        return {"generated_tokens": 0, "prompt_tokens": 0, "cached_tokens": 0, "idle_seconds": 0.0}

    def shutdown(self):
        pass


def call(box):
    """Return a turn that zooms."""
    return f"It is small.\n</think>\n\n<tool_call>{arguments(box)}"


def arguments(box):
    """Return the rest of a turn whose call was opened already."""
    written = json.dumps({"name": "image_zoom_in", "arguments": {"bbox_2d": list(box)}})
    return f"\n{written}\n</tool_call><|im_end|>"


def answer(text):
    return f"I see.\n</think>\n\nThe answer is \\boxed{{{text}}}.<|im_end|>"


class MockWorker(RolloutWorker):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, engine_factory=ScriptedEngine, **options)


class MockLearner:
    def update(self, items):
        self.items = items
        return {"loss": 0.0}

    def send_weights(self, receivers, version):
        sent = [receiver.finish_weight_update.remote(version) for receiver in receivers]
        ray.get(sent, timeout=30)


class SevenTask:
    system = None

    def train(self, index):
        return Question(f"q{index}", "Which digit?", (np.zeros((64, 64, 3), np.uint8),), "7")

    @staticmethod
    def verify(question, text):
        return exact_match(text, question.answer)


class Phases:
    def phase(self, name):
        return nullcontext()


@pytest.fixture(scope="module")
def actors():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    tools = start_tool_servers(RECIPE.all_tools, RECIPE.evaluation.tools)
    settings = WorkerSettings(MODEL, RECIPE.rollout, tools, SevenTask.verify, run_seed=0)
    pool = RolloutPool(settings, actor_class=MockWorker)
    tokens, learner = pool.ready(), MockLearner()
    resampler = start_resampler(RECIPE.resampler, tokens, RECIPE.rollout.n)
    yield Actors(pool, tools, learner, Policy(learner, pool), resampler, tokens)
    pool.shutdown()
    ray.shutdown()


def flow(actors, recipe=RECIPE, first=0):
    made = Flow(recipe, SevenTask(), actors.pool, actors.resampler)
    made.resume(Cursor(first * recipe.questions_per_step, first))
    return made


def policy_versions(batch):
    """Return the versions of the policies that sampled a batch's rollouts."""
    rollouts = [rollout for group in batch.groups for rollout in group.rollouts]
    segments = [segment for rollout in rollouts for segment in rollout.segments]
    return {s.policy_version for s in segments if isinstance(s, PolicySegment)}


def test_a_step_turns_questions_into_groups_forks_advantages_and_the_next_policy(actors):
    questions = flow(actors)
    result = train_step(RECIPE, actors, questions, 0, Phases())

    assert [group.question.id for group in result.batch.groups] == ["q0", "q1"]
    numbers = measurements(RECIPE, result, actors, {"time/rollout": 1.0})
    # In each group two rollouts zoom and fail, so both groups trigger.
    # R = 0.5 * 2 * 4 = 4 resamples: two prefixes of K = 2.
    assert numbers["tool_use_rate"] == 0.5
    assert numbers["trigger_rate"] == 1.0
    assert [len(group.resamples) for group in result.batch.groups] == [1, 1]
    # One continuation of each pair is right, so every prefix recovers.
    assert numbers["recovery_rate"] == 1.0
    assert numbers["resample_pass1"] == 0.5
    assert numbers["distinct_calls_per_prefix"] == 2.0
    # Twice: 3 other rollouts, 1 prefix, 2 continuations.
    assert len(actors.learner.items) == 12
    forks = [item.advantages for item in actors.learner.items if item.trajectory.fork]
    extremes = sorted(round(float(a.max() + a.min()), 3) for a in forks)
    assert extremes == [-1.0, -1.0, 1.0, 1.0]
    # What a checkpoint keeps of the resampler.
    assert [len(past.rewards) for past in questions.cursor.history.past] == [8]

    following = train_step(RECIPE, actors, questions, 1, Phases())
    assert policy_versions(following.batch) == {1}


def test_grpo_is_the_same_path_without_forks(actors):
    grpo = RECIPE.model_copy(update={"algorithm": "grpo"})
    result = train_step(grpo, actors, flow(actors, grpo, 2), 2, Phases())
    assert all(not group.resamples for group in result.batch.groups)
    assert len(result.items) == 8


def test_only_an_evaluation_offers_the_tools_that_are_its_own(actors):
    decode = Chat.load(MODEL).decode
    question = SevenTask().train(0)
    for evaluating in (False, True, False):
        (group,) = actors.pool.rollout([question], 0, 4, evaluating=evaluating)
        (prompt,) = {decode(trajectory.prompt_ids) for trajectory in group.rollouts}
        assert "image_zoom_in" in prompt
        assert ("Return the text." in prompt) is evaluating
    found = held_out(actors.pool, SimpleNamespace(held_out=lambda: [question]), RECIPE.evaluation)
    assert (found.numbers["tool_use"], found.numbers["dropped"]) == (0.5, 0.0)
    assert [row[2] for row in found.counts[""]] == [RECIPE.evaluation.samples // 2]


def test_proposition_1_is_measured_over_the_same_pool(actors):
    actors.policy.publish(0)
    question = SevenTask().train(1)
    found = actors.pool.run(probe(actors.pool, question, RECIPE, actors.tokens, 2)).result(60)
    # Two of four rollouts zoom and fail; of two continuations the first zooms right. Of two new
    # rollouts one zooms, and fails.
    assert (sum(found.continued), sum(found.called), len(found.right)) == (1, 1, 2)
    outcomes = list(zip(found.called, found.right, strict=True))
    assert (True, True) not in outcomes


def test_a_group_with_an_unscored_rollout_is_dropped_whole_and_counted():
    questions = [SevenTask().train(i) for i in range(2)]

    def rollout(i, number, reward):
        prompt = np.zeros(1, np.int32)
        return Trajectory(f"q{i}", number, prompt, (), EndReason.ANSWERED, reward=reward)

    def group(i, reward):
        return Group(questions[i], (rollout(i, 0, 1.0), rollout(i, 1, reward)), 0)

    kept, dropped = complete(iter([group(1, 0.0), group(0, None)]), questions)
    assert [g.question.id for g in kept] == ["q1"]
    assert dropped == 1


def test_importing_the_program_is_light():
    code = (
        "import sys, axpo, axpo.cli, axpo.config\n"
        "heavy = {'vllm', 'deepspeed', 'torch', 'transformers', 'ray'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert out.stdout.strip() == "[]", out.stdout + out.stderr
