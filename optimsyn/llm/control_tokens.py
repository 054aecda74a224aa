"""Text from data becomes tokens of text, never a tokenizer's control tokens.

A document may hold `<eos>`, `<|im_end|>` or `</s>`: a manual of a chat model does, and whoever wants to steer a model
puts them there. A tokenizer that meets such a string in its input makes the control token of it. Here

- `masked` puts stand-ins of the same length for such strings into every piece of data, before it is joined with
  anything else (another piece, a chat template);
- `encode` then knows the control strings that the template wrote from those that the data brought: the first become
  control tokens, the second what the tokenizer makes of their letters.

A text without such strings takes the tokenizer's own way and has the ids that it always had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

# What chat templates that state the date take for today: what a model sees, and its scores, must not change overnight.
RENDERED_DAY = date(2024, 7, 26)
# In front of a template this goes before the function that returns the real day, however the template calls it. (A
# function that is given to a template is turned into its name.)
_SAME_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(
        f".replace('%{sign}{letter}', '{RENDERED_DAY.strftime(f'%{letter}').lstrip('0' if sign else '')}')"
        for sign in ("-", "")
        for letter in "aAwdbBmyYHIpMSfjUWcxXGuVDFeTR"
    )
    + " }}{% endmacro %}{{ '' }}"
)
# Two ranges of characters that no text uses: stand-ins in texts, and new names of control tokens in a copied tokenizer.
_STAND_INS = 0x100000
_NAMES = 0xF0000
_RANGE = 0xFFFD
_ANY_STAND_IN = re.compile(f"[{chr(_STAND_INS)}-{chr(_STAND_INS + _RANGE)}]")
_ANY_NAME = re.compile(f"[{chr(_NAMES)}-{chr(_NAMES + _RANGE)}]")
# Added tokens that a vocabulary does not call special although models are steered by them.
_STEERING = re.compile(
    r"<\|.*\|>|<｜.*｜>|</?(?:think|tool_\w+|function\w*|reasoning|s|eos|bos|pad)>|<unused\d+>|\[/?INST\]"
)


class Plain(NamedTuple):
    """Token ids, and for each its begin and end in the text; None where the tokenizer does not say."""

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
        named = set(getattr(tokenizer, "chat_control_tokens", None) or ())
        strings = {str(token) for token in tokenizer.all_special_tokens}
        for token in tokenizer.added_tokens_decoder.values():
            content = token.content
            # Runs of blanks are added tokens of Gemma, and templates hold them as ordinary text.
            of_the_template = content in text and not content.isspace() and len(content) > 1
            if token.special or content in named or of_the_template or _STEERING.fullmatch(content):
                strings.add(content)
        # Letters that a vocabulary lacks are written in bytes.
        strings = {string for string in strings if string and not re.fullmatch("<0x[0-9A-F]{2}>", string)}
        self.strings: tuple[str, ...] = tuple(sorted(strings, key=lambda string: (-len(string), string)))[:_RANGE]
        self._pattern = re.compile("|".join(map(re.escape, self.strings)) or "(?!)")
        self._place = {string: place for place, string in enumerate(self.strings)}

    def within(self, text: str) -> bool:
        """Whether a text from data holds a control token's string."""
        return self._pattern.search(text) is not None

    def masked(self, text: str) -> str:
        """A piece of data with stand-ins of the same length for the control strings in it.

        Characters of the range that stand-ins are taken from, which are no characters of any script, are replaced.
        """
        text = _ANY_STAND_IN.sub("\N{REPLACEMENT CHARACTER}", text)
        return self._pattern.sub(lambda match: self._stand_in(match.group()), text)

    def unmasked(self, text: str) -> str:
        """The text as it was."""
        out, at = [], 0
        while (match := _ANY_STAND_IN.search(text, at)) is not None:
            string = self.strings[ord(match.group()) - _STAND_INS]
            out += [text[at : match.start()], string]
            # What a template cut off of a stand-in is put back: the string stays whole.
            at = match.start() + 1
            while at < len(text) and at - match.start() < len(string) and text[at] == match.group():
                at += 1
        return "".join([*out, text[at:]])

    def encode(self, text: str, *, add_special_tokens: bool) -> Plain:
        """The tokens of a text that was put together of masked data and of what a template wrote.

        Args:
            text: What is to be encoded.
            add_special_tokens: Put the tokenizer's own beginning and end around it.

        Returns:
            Ids, and offsets into `text` (and into the unmasked text, which is as long).
        """
        tokenizer = self._tokenizer
        if _ANY_STAND_IN.search(text) is None:
            if not tokenizer.is_fast:
                return Plain(list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]), None)
            out = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
            return Plain(list(out["input_ids"]), list(out["offset_mapping"]))
        if tokenizer.is_fast and self._renamed is not None:
            # Icon fonts live in the range that the names are taken from.
            named = _ANY_NAME.sub("\N{REPLACEMENT CHARACTER}", text)
            named = self._pattern.sub(lambda match: self._name(match.group()), named)
            encoding = self._renamed.encode(self.unmasked(named), add_special_tokens=add_special_tokens)
            return Plain(list(encoding.ids), list(encoding.offsets))
        ids = self._in_pieces(text)
        if add_special_tokens:
            # An empty text shows what the tokenizer puts around every text.
            around = _around(tokenizer)
            ids = [*around[0], *ids, *around[1]]
        return Plain(ids, None)

    def _stand_in(self, string: str) -> str:
        return chr(_STAND_INS + self._place[string]) * len(string)

    def _name(self, string: str) -> str:
        return chr(_NAMES + self._place[string]) * len(string)

    @cached_property
    def _renamed(self) -> Any:
        """The tokenizer with other names for its control tokens, so that the old ones are text; None without a copy."""
        from tokenizers import Tokenizer

        names = {string: self._name(string) for string in self.strings}
        try:
            raw = json.loads(self._tokenizer.backend_tokenizer.to_str())
            _rename(raw, names)
            copy = Tokenizer.from_str(json.dumps(raw))
        except Exception:  # noqa: BLE001 - the library raises bare Exceptions for parts that it cannot write or read
            return None
        copy.no_truncation()
        copy.no_padding()
        same = all(
            copy.token_to_id(name) == self._tokenizer.backend_tokenizer.token_to_id(string)
            for string, name in names.items()
        )
        return copy if same else None

    def _in_pieces(self, text: str) -> list[int]:
        """Ids of what stands between the template's control tokens, each piece on its own, as slow tokenizers do."""
        ids: list[int] = []
        at = 0
        for match in [*self._pattern.finditer(text), None]:
            stop = len(text) if match is None else match.start()
            if stop > at:
                ids += self._as_text(text[at:stop])
            if match is not None:
                ids.append(self._tokenizer.convert_tokens_to_ids(match.group()))
                at = match.end()
        return ids

    def _as_text(self, piece: str) -> list[int]:
        ids = self._split(self.unmasked(piece))
        if not self._ids & set(ids):
            return ids
        # The vocabulary holds the whole string as an ordinary piece too: torn apart it is none.
        ids = []
        for part in re.split(f"({_ANY_STAND_IN.pattern}+)", piece):
            if _ANY_STAND_IN.search(part):
                string = self.unmasked(part)
                ids += [one for letter in string for one in self._split(letter) if one not in self._ids]
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


_known: WeakKeyDictionary[Any, tuple[Any, Controls]] = WeakKeyDictionary()


def controls_of(tokenizer: Any) -> Controls:
    """The control tokens of a tokenizer, remembered as long as it lives and stays as it is."""
    state = (
        len(getattr(tokenizer, "added_tokens_decoder", ())),
        str(tokenizer.chat_template),
        tuple(tokenizer.all_special_tokens),
    )
    known = _known.get(tokenizer)
    if known is None or known[0] != state:
        known = _known[tokenizer] = (state, Controls(tokenizer))
    return known[1]


def rendered(tokenizer: Any, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """Messages in the tokenizer's chat template, with masked contents and one day for every day.

    Args:
        tokenizer: One with a chat template.
        messages: With `role` and `content`; contents are data.
        options: Of `apply_chat_template`.

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


def data_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that is data as a whole, with the tokenizer's own beginning and end."""
    controls = controls_of(tokenizer)
    return controls.encode(controls.masked(text), add_special_tokens=True).ids


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    inside = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(inside) + 1):
        if whole[start : start + len(inside)] == inside:
            return whole[:start], whole[start + len(inside) :]
    return [], []


def _rename(raw: dict[str, Any], names: dict[str, str]) -> None:
    """Gives control tokens other names in the JSON form of a tokenizer: among the added tokens and in its vocabulary.

    A vocabulary of whole words or pieces holds them as well and would find them in plain text.
    """
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
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]


def _makes(merge: str | Iterable[str], names: dict[str, str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else list(merge)
    return "".join(parts) in names or any(part in names for part in parts)
