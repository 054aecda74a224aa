"""Parses YAML strictly: no duplicate fields, no huge or self-referencing values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.base.secrets.redaction import redact, remember_variables_of
from optimsyn.base.suggestions import file_beside
from optimsyn.base.text_files import decode
from optimsyn.base.values import kind_of

# Far more than any recipe needs.
LARGEST_FILE = 2_000_000
# Fields that one kind of file has and the other has not.
_OF_STUDY = frozenset({"recipes", "recipe", "arms", "contrasts", "transfer"})
_OF_RECIPE = frozenset({"documents", "questions", "guiding_text", "models"})
_CHARACTERS = 500_000
_VALUES = 20_000
_DEPTH = 40
_DIGITS = 100
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})

# Invisible characters in or around a field's name are always a mistake.
_INVISIBLE = re.compile(
    r"^(?:[ \t]|- )*(?:[\w.-]*(?P<before>[\u00a0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff])"
    r"|[\w.-]+:(?P<after>[\u00a0\u2000-\u200f\u202f\u3000\ufeff]))",
    re.MULTILINE,
)
_CURES = (
    ("'\\t'", "YAML allows no tabs there: indent with spaces"),
    (
        "mapping values are not allowed",
        "put texts that hold `: ` in quotes, and indent the fields of a section alike",
    ),
    ("single document", "a recipe is one document: remove the line `---`, or give each recipe a file of its own"),
    ("special characters are not allowed", "remove that character"),
    ("could not find expected ':'", "put a colon and a space after a field's name"),
    ("did not find expected", "close every bracket and quote, and indent the fields of a section alike"),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that also refuses duplicate fields and too many values.

    YAML forbids duplicate fields, PyYAML keeps the last one. An alias (`*name`) counts with all its values each time:
    nine lines of nine aliases are a billion values.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # The number of values in a node and below it.
        self._sizes: dict[int, int] = {}
        self._written = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Composes a node."""
        self._depth += 1
        if self._depth > _DEPTH:
            self._refuse(f"it is nested too deeply, more than {_DEPTH} levels; check its brackets and indents")
        self._written += 1
        if self._written > _VALUES:
            self._refuse(f"it holds more than {_VALUES:,} values; keep data in a file of its own")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if id(node) not in self._sizes:
            self._sizes[id(node)] = _own_size(node) + sum(self._sizes.get(id(part), 0) for part in _parts(node))
        if self._sizes[id(node)] > _VALUES:
            self._refuse(f"its aliases (*) stand for more than {_VALUES:,} values; write out what is meant")
        return node

    def _refuse(self, message: str) -> None:
        place = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        raise yaml.composer.ComposerError(None, None, message, place)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Composes a mapping, before `<<` is merged."""
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
        """The value of a node."""
        if node.tag in _NUMBERS and len(node.value) > _DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value):,} digits; put quotes around what is text", node.start_mark
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"{error}; put quotes around what is text", node.start_mark
            ) from None


def _own_size(node: Any) -> int:
    """One value; a long text counts as several, so that aliases cannot multiply it."""
    return 1 + len(node.value) // 1000 if isinstance(node, yaml.ScalarNode) else 1


def _parts(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def read_mapping(file: Path, what: str = "recipe") -> tuple[dict[str, Any], str]:
    """The fields of a YAML file as they are written, and its text.

    Args:
        file: The file.
        what: What it describes, for messages: `recipe` or `study`.

    Raises:
        RecipeError: The file is missing or too large, or is not a mapping in YAML.
    """
    if file.is_dir():
        raise RecipeError(f"{file}: is a folder; name the {what} file in it")
    if not file.is_file():
        raise RecipeError(f"{file}: there is no such {what} file.{file_beside(file, '*.y*ml')}")
    if file.stat().st_size > LARGEST_FILE:
        raise RecipeError(f"{file}: has {file.stat().st_size:,} bytes and is not a {what}; name the {what} file")
    try:
        text = decode(file.read_bytes(), str(file))
        # The message quotes text that cannot be parsed, which may contain a secret.
        remember_variables_of(text)
        raw = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: not valid YAML: {redact(said_of_yaml(error, text))}") from None
    except DataError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: a {what} is a mapping of fields (`name: mine` ...), {no_mapping(raw, text, what)}")
    return raw, text


def described_by(raw: Mapping[str, Any]) -> Literal["recipe", "study"] | None:
    """What the fields of a file are those of; None where that cannot be told."""
    study, recipe = _OF_STUDY & raw.keys(), _OF_RECIPE & raw.keys()
    if bool(study) == bool(recipe):
        return None
    return "study" if study else "recipe"


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: It is not valid YAML, gives a field twice, is nested without end (an anchor inside itself), or
            is larger than any recipe.
    """
    if len(text) > _CHARACTERS:
        raise yaml.YAMLError(
            f"it has {len(text):,} characters, more than the {_CHARACTERS:,} of any recipe; keep data in its own file"
        )
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        _walk(value, set(), set())
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply; check its brackets") from None
    return value


def said_of_yaml(error: yaml.YAMLError, text: str) -> str:
    """A message about a YAML error: what is wrong, where, and what to do."""
    message = str(error).replace('in "<unicode string>", ', "in ")
    if re.match(r"\s*<(?:!doctype|html|\?xml)\b", text, re.I):
        return f"{message}\nit is a web page (HTML or XML); download the file itself"
    cures = [cure for words, cure in _CURES if words in message][:1]
    return "\n".join([message, *cures, *invisible(text)])


def invisible(text: str) -> list[str]:
    """A message about the first invisible character beside a field's name, as in text from web pages."""
    match = _INVISIBLE.search(text)
    if match is None:
        return []
    place = match.start("before" if match["before"] is not None else "after")
    sign = text[place]
    name = unicodedata.name(sign, "an unnamed character")
    return [
        f"line {text.count(chr(10), 0, place) + 1} holds a character that cannot be seen, U+{ord(sign):04X} "
        f"({name}): type the line again"
    ]


def no_mapping(value: Any, text: str, what: str = "recipe") -> str:
    """The message for YAML that is no mapping."""
    if value is None and what != "recipe":
        return f"this is empty; docs/howto/{what}.md shows one"
    if value is None:
        return "this is empty; `optimsyn new quickstart` copies one that you can change"
    if isinstance(value, list):
        return f"this is a list; remove the `-` or `[ ]` around its fields, and give each {what} a file of its own"
    if isinstance(value, str):
        begun = " ".join(redact(text).split())[:40]
        return f"this is text without fields ({begun!r} ...); write `field: value` on lines of their own"
    return f"this is {kind_of(value)}; write `field: value` on lines of their own"


def _walk(value: Any, inside: set[int], done: set[int]) -> None:
    """Checks a whole tree once; `inside` are the ids of what contains it, `done` those of checked values."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise yaml.YAMLError("a text holds half of a surrogate pair, which is not a character; remove it") from None
    if not isinstance(value, dict | list) or id(value) in done:
        return
    if id(value) in inside:
        raise yaml.YAMLError("an anchor (&) holds itself (*); write its value out")
    inside.add(id(value))
    for item in [*value, *value.values()] if isinstance(value, dict) else value:
        _walk(item, inside, done)
    inside.discard(id(value))
    done.add(id(value))
