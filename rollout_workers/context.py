"""Whether a question fits the context of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rollout_workers.image_rule import ImageRule

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Context:
    """The context of a run, and what images take of it."""

    rule: ImageRule
    limit: int  # tokens: rollout.max_context_tokens

    def check(self, text_tokens: int, sizes: Sequence[tuple[int, int]]) -> None:
        """Check that a prompt leaves room for a token of the policy.

        Args:
            text_tokens: of the prompt, without its images.
            sizes: width and height of each image, in pixels.

        Raises:
            ValueError: it does not.
        """
        images = sum(self.rule.tokens(*size) for size in sizes)
        if text_tokens + images >= self.limit:
            raise ValueError(
                f"{images:,} tokens of images and {text_tokens:,} of text, but "
                f"rollout.max_context_tokens is {self.limit:,}"
            )


@dataclass(frozen=True)
class PromptCheck:
    """Checks questions before a run, when no prompt is rendered yet."""

    context: Context
    frame: int  # tokens of a prompt without question: system text, tools, the template's own
    held_out_frame: int  # of held-out questions, with the tools of evaluations
    tokenizer: Tokenizer

    @property
    def held_out(self) -> PromptCheck:
        """Return what checks held-out questions."""
        return replace(self, frame=self.held_out_frame)

    def __call__(self, text: str, sizes: Sequence[tuple[int, int]]) -> None:
        """Check that a question fits.

        Args:
            text: of the question.
            sizes: width and height of each of its images, in pixels.

        Raises:
            ValueError: it does not fit.
        """
        # A token holds at least one byte, so most questions need no tokenizer.
        at_most = self.frame + len(text.encode("utf-8", "surrogatepass"))
        try:
            self.context.check(at_most, sizes)
        except ValueError:
            tokens = len(self.tokenizer.encode(text, add_special_tokens=False).ids)
            self.context.check(self.frame + tokens, sizes)
