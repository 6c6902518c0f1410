"""Write the policy's turns of a scripted rollout, as the teacher of an SFT example would.

A turn is thinking, then a call or an answer. The `<think>` before it is the chat's: some models
open every turn with it, and for the others `Chat.trajectory` adds it.
"""

from __future__ import annotations


def final_turn(thought: str, answer: str) -> str:
    """Return a turn that thinks and then gives its answer in a box."""
    return f"{thought}\n</think>\n\nThe answer is \\boxed{{{answer}}}.<|im_end|>"


def calling_turn(thought: str, call: str) -> str:
    """Return a turn that thinks and then calls a tool; `call` is its JSON object."""
    return f"{thought}\n</think>\n\n<tool_call>\n{call}\n</tool_call><|im_end|>"


def lesson_turn(words: str) -> str:
    """Return a turn that only writes `words`: what a lesson wants to be read or written."""
    return f"{words}\n</think>\n\nDone.<|im_end|>"
