"""Read YAML as it is written: a key that is there twice is an error, and nothing grows without end.

A recipe may come from anyone. Ten lines of aliases can stand for more values than a machine holds
(the "billion laughs"), and thousands of brackets for a nesting that Python cannot walk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axpo.texts import check_text

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1 << 20
"""Of a file. The longest recipe here has 5 kB."""
MAX_VALUES = 100_000
"""Keys and values of a file, those that aliases repeat counted each time."""
MAX_DEPTH = 50


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: it is no YAML, has a key twice, is too large, or a text of it has half a
            surrogate pair; one line.
    """
    import yaml

    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text):,} characters; expected at most {MAX_BYTES:,}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Walk().count(node, 0)
        value = _constructed(loader, node)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"more than {MAX_DEPTH} lists and sections inside each other") from None
    check_text(value)
    return value


def _constructed(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """Return the value of a node; raise ValueError or YAMLError if it has none."""
    try:
        return loader.construct_document(node)
    except ValueError as error:
        # Of a number or a date; the reader's own words are about Python.
        raise ValueError(f"not YAML: a value that cannot be read: {error}") from None
    except (LookupError, AttributeError, TypeError, OverflowError) as error:
        # A tag that its value does not fit: `!!bool maybe`
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"not YAML: a tag that its value does not fit ({reason})") from None


class _Walk:
    """Counts the values below nodes; a node that several aliases share is looked at once."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def count(self, node: yaml.Node, depth: int) -> int:
        """Return how many values a node stands for.

        Raises:
            ValueError: too many, too deep, or a key is there twice.
        """
        import yaml

        if isinstance(node, yaml.ScalarNode):
            return 1
        # An alias of a list or section inside of itself comes back here without an end.
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} lists and sections inside each other")
        known = self._counts.get(id(node))
        if known is not None:
            return known
        children = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [part for pair in node.value for part in pair]
        total = 1 + sum(self.count(child, depth + 1) for child in children)
        if total > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values, those of aliases included")
        self._counts[id(node)] = total
        return total


def _check_keys(node: yaml.MappingNode) -> None:
    """Raise ValueError if a section has a key twice."""
    import yaml

    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        name = (key.tag, key.value)
        if name in seen:
            line = key.start_mark.line + 1
            raise ValueError(f"line {line}: the key {key.value[:80]!r} is there twice")
        seen.add(name)
