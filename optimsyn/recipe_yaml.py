"""YAML text as plain values, read so that nothing in it is lost or repeated without a word."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a field given twice: YAML forbids it, PyYAML keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written, before what `<<` brings in.

        Raises:
            yaml.YAMLError: A field is given twice.
        """
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the field {key.value!r} is given twice; remove one", key.start_mark
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node.

        Raises:
            yaml.YAMLError: It looks like a date or a number but is none.
        """
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{error}; put quotes around what is text", node.start_mark
            ) from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: It is not valid YAML, gives a field twice, or is nested without end (an anchor inside itself).
    """
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        _walk(value, set(), set())
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply; check its brackets") from None
    return value


def _walk(value: Any, inside: set[int], done: set[int]) -> None:
    """Goes through a whole tree once.

    Args:
        value: The tree.
        inside: What `value` is part of.
        done: What has been gone through, which anchors may repeat.

    Raises:
        yaml.YAMLError: Something is part of itself, or a text holds half of a surrogate pair.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise yaml.YAMLError("a text holds half of a surrogate pair, which is no character; remove it") from None
    if not isinstance(value, dict | list) or id(value) in done:
        return
    if id(value) in inside:
        raise yaml.YAMLError("an anchor (&) holds itself (*); write its value out")
    inside.add(id(value))
    for item in [*value, *value.values()] if isinstance(value, dict) else value:
        _walk(item, inside, done)
    inside.discard(id(value))
    done.add(id(value))
