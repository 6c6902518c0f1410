"""The concepts whose variants a recipe may name."""

from __future__ import annotations

# Importing the recipe imports every room, and with it every registered variant.
import axpo.config.recipe  # noqa: F401
from axpo.errors import AxpoError
from axpo.registry import REGISTRIES


def variants(concept: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """Return the registered variants of one concept, or of all.

    Args:
        concept: the concept's plural, for example "objectives"; None: all concepts.

    Returns:
        By concept: the name and one line of description of each variant.

    Raises:
        AxpoError: there is no such concept.
    """
    # A concept's name is typed at a shell, so it has no spaces.
    known = {name.replace(" ", "_"): registry for name, registry in REGISTRIES.items()}
    if concept is not None and concept not in known:
        raise AxpoError(f"CONCEPT={concept!r}: expected one of {', '.join(sorted(known))}")
    chosen = sorted(known) if concept is None else [concept]
    return {name: known[name].described() for name in chosen}
