"""Text from data becomes tokens of text, never a tokenizer's control tokens.

A document may hold `<eos>`, `<|im_end|>` or `</s>`: the manual of a chat model does, and so does an injected prompt. A
tokenizer turns such a string into the control token. Here

- `masked` replaces such strings in data with placeholders of the same length, before the data is joined with a chat
  template or other text;
- `encode` then distinguishes the template's control strings from the data's: the template's become control tokens,
  the data's are tokenized as ordinary text.

A text without such strings goes through the tokenizer unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

# The date for chat templates that state one: what a model sees, and its scores, must not change overnight.
RENDERED_DAY = date(2024, 7, 26)
# Put in front of a template, this overrides its function for the current date. (A function passed to a template would
# be turned into its name.)
_SAME_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(
        f".replace('%{sign}{letter}', '{RENDERED_DAY.strftime(f'%{letter}').lstrip('0' if sign else '')}')"
        for sign in ("-", "")
        for letter in "aAwdbBmyYHIpMSfjUWcxXGuVDFeTR"
    )
    + " }}{% endmacro %}{{ '' }}"
)
# Stands for a reply while the end of a template is looked for.
_REPLY = "OPTIMSYN-REPLY-GOES-HERE"
# Two ranges of private-use characters: placeholders in texts, and new names of control tokens in a copied tokenizer.
_STAND_INS = 0x100000
_NAMES = 0xF0000
_RANGE = 0xFFFD
_ANY_STAND_IN = re.compile(f"[{chr(_STAND_INS)}-{chr(_STAND_INS + _RANGE)}]")
_ANY_NAME = re.compile(f"[{chr(_NAMES)}-{chr(_NAMES + _RANGE)}]")
# Added tokens that control a model although its vocabulary does not mark them as special.
_STEERING = re.compile(
    r"<\|.*\|>|<｜.*｜>|</?(?:think|tool_\w+|function\w*|reasoning|s|eos|bos|pad)>|<unused\d+>|\[/?INST\]"
)


class Plain(NamedTuple):
    """Token ids with their (start, end) offsets in the text; None where the tokenizer gives no offsets."""

    ids: list[int]
    offsets: list[tuple[int, int]] | None


class Controls:
    """The control tokens of one tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template
        text = template if isinstance(template, str) else json.dumps(template or "", ensure_ascii=False)
        declared = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        strings = {str(token) for token in tokenizer.all_special_tokens}
        for token in tokenizer.added_tokens_decoder.values():
            content = token.content
            # Runs of blanks are added tokens of Gemma, and templates hold them as ordinary text.
            in_template = content in text and not content.isspace() and len(content) > 1
            if token.special or content in declared or in_template or _STEERING.fullmatch(content):
                strings.add(content)
        # Byte tokens stand for letters that the vocabulary lacks.
        strings = {string for string in strings if string and not re.fullmatch("<0x[0-9A-F]{2}>", string)}
        self.strings: tuple[str, ...] = tuple(sorted(strings, key=lambda string: (-len(string), string)))[:_RANGE]
        self._pattern = re.compile("|".join(map(re.escape, self.strings)) or "(?!)")
        self._place = {string: place for place, string in enumerate(self.strings)}

    def within(self, text: str) -> bool:
        """Whether a text from data holds a control token's string."""
        return self._pattern.search(text) is not None

    def masked(self, text: str) -> str:
        """Data with placeholders of the same length for its control strings.

        Characters in the placeholder range, which belong to no script, are replaced.
        """
        text = _ANY_STAND_IN.sub("\N{REPLACEMENT CHARACTER}", text)
        return self._pattern.sub(lambda match: self._stand_in(match.group()), text)

    def unmasked(self, text: str) -> str:
        """The original text."""
        out, at = [], 0
        while (match := _ANY_STAND_IN.search(text, at)) is not None:
            string = self.strings[ord(match.group()) - _STAND_INS]
            out += [text[at : match.start()], string]
            # A template may have cut off part of a placeholder; the string is restored as a whole.
            at = match.start() + 1
            while at < len(text) and at - match.start() < len(string) and text[at] == match.group():
                at += 1
        return "".join([*out, text[at:]])

    def encode(self, text: str, *, add_special_tokens: bool) -> Plain:
        """The tokens of a text that combines masked data with a template.

        Args:
            text: The text.
            add_special_tokens: Add the tokenizer's own begin and end tokens.

        Returns:
            Ids, and offsets into `text` (and into the unmasked text, which has the same length).
        """
        tokenizer = self._tokenizer
        if _ANY_STAND_IN.search(text) is None:
            if not tokenizer.is_fast:
                return Plain(list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]), None)
            out = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
            return Plain(list(out["input_ids"]), list(out["offset_mapping"]))
        if tokenizer.is_fast and self._renamed is not None:
            # Icon fonts use the same range as the new names.
            renamed = _ANY_NAME.sub("\N{REPLACEMENT CHARACTER}", text)
            renamed = self._pattern.sub(lambda match: self._name(match.group()), renamed)
            encoding = self._renamed.encode(self.unmasked(renamed), add_special_tokens=add_special_tokens)
            return Plain(list(encoding.ids), list(encoding.offsets))
        ids = self._encode_segments(text)
        if add_special_tokens:
            begin, end = _begin_and_end(tokenizer)
            ids = [*begin, *ids, *end]
        return Plain(ids, None)

    def _stand_in(self, string: str) -> str:
        return chr(_STAND_INS + self._place[string]) * len(string)

    def _name(self, string: str) -> str:
        return chr(_NAMES + self._place[string]) * len(string)

    @cached_property
    def _renamed(self) -> Any:
        """A copy of the tokenizer with renamed control tokens, so that the old names are text; None if it fails."""
        from tokenizers import Tokenizer

        names = {string: self._name(string) for string in self.strings}
        try:
            raw = json.loads(self._tokenizer.backend_tokenizer.to_str())
            _rename(raw, names)
            copy = Tokenizer.from_str(json.dumps(raw))
        except Exception:  # noqa: BLE001 - the library raises bare Exceptions for parts that it cannot serialize
            return None
        copy.no_truncation()
        copy.no_padding()
        same = all(
            copy.token_to_id(name) == self._tokenizer.backend_tokenizer.token_to_id(string)
            for string, name in names.items()
        )
        return copy if same else None

    def _encode_segments(self, text: str) -> list[int]:
        """Ids of the text, each segment between the template's control tokens on its own, as slow tokenizers do."""
        ids: list[int] = []
        at = 0
        for match in [*self._pattern.finditer(text), None]:
            stop = len(text) if match is None else match.start()
            if stop > at:
                ids += self._text_ids(text[at:stop])
            if match is not None:
                ids.append(self._tokenizer.convert_tokens_to_ids(match.group()))
                at = match.end()
        return ids

    def _text_ids(self, segment: str) -> list[int]:
        ids = self._split(self.unmasked(segment))
        if not self._ids & set(ids):
            return ids
        # The vocabulary also holds the whole string as an ordinary token, so encode it letter by letter.
        ids = []
        for part in re.split(f"({_ANY_STAND_IN.pattern}+)", segment):
            if _ANY_STAND_IN.search(part):
                string = self.unmasked(part)
                ids += [token for letter in string for token in self._split(letter) if token not in self._ids]
            elif part:
                ids += self._split(part)
        return ids

    def _split(self, text: str) -> list[int]:
        tokens = self._tokenizer.tokenize(text, split_special_tokens=True)
        return list(self._tokenizer.convert_tokens_to_ids(tokens))

    @cached_property
    def _ids(self) -> frozenset[int]:
        ids = {self._tokenizer.convert_tokens_to_ids(string) for string in self.strings}
        return frozenset(ids - {getattr(self._tokenizer, "unk_token_id", None)})


_cache: WeakKeyDictionary[Any, tuple[Any, Controls]] = WeakKeyDictionary()


def controls_of(tokenizer: Any) -> Controls:
    """The control tokens of a tokenizer, cached until it changes."""
    state = (
        len(getattr(tokenizer, "added_tokens_decoder", ())),
        str(tokenizer.chat_template),
        tuple(tokenizer.all_special_tokens),
    )
    cached = _cache.get(tokenizer)
    if cached is None or cached[0] != state:
        cached = _cache[tokenizer] = (state, Controls(tokenizer))
    return cached[1]


def rendered(tokenizer: Any, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """Messages in the tokenizer's chat template, with masked contents and a fixed date.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: With `role` and `content`; contents are data.
        options: Options of `apply_chat_template`.

    Returns:
        A text for `Controls.encode`.

    Raises:
        jinja2.TemplateError: The template refuses the messages.
    """
    controls = controls_of(tokenizer)
    masked = [{**message, "content": controls.masked(message["content"])} for message in messages]
    template: str = tokenizer.get_chat_template()
    if "strftime_now" in template:
        options["chat_template"] = _SAME_DAY + template
    text: str = tokenizer.apply_chat_template(masked, tokenize=False, **options)
    return text


def template_end(tokenizer: Any) -> int | None:
    """The control token with which the chat template ends an assistant's message; None where it has none.

    Models learn to stop there, also base models whose own end token is another.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _REPLY}]
    try:
        _, found, after = rendered(tokenizer, messages).rpartition(_REPLY)
    except TemplateError:
        return None  # a template for other conversations; rendering those says what is wrong
    controls = controls_of(tokenizer)
    after = after.strip()
    string = next((string for string in controls.strings if after.startswith(string)), None)
    return None if not found or string is None else int(tokenizer.convert_tokens_to_ids(string))


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Sorted tokens that end a reply: the model's own (often several), the tokenizer's and the chat template's."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = list(declared) if isinstance(declared, list | tuple) else [declared]
    ends = [*own, tokenizer.eos_token_id, template_end(tokenizer)]
    return sorted({int(end) for end in ends if end is not None})


def data_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that is all data, with the tokenizer's own begin and end tokens."""
    controls = controls_of(tokenizer)
    return controls.encode(controls.masked(text), add_special_tokens=True).ids


def _begin_and_end(tokenizer: Any) -> tuple[list[int], list[int]]:
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def _rename(raw: dict[str, Any], names: dict[str, str]) -> None:
    """Renames control tokens in a tokenizer's JSON: added tokens and vocabulary, which would match them in text."""
    raw["truncation"] = raw["padding"] = None
    for token in raw.get("added_tokens") or ():
        if token["content"] in names:
            token["content"], token["normalized"] = names[token["content"]], False
    model = raw["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): place for token, place in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _merges_into(merge, names)]


def _merges_into(merge: str | Iterable[str], names: dict[str, str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    return "".join(parts) in names or any(part in names for part in parts)
