"""No control token comes out of data, for tokenizers of a dozen shapes, and ordinary text has the ids it always had."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

import pytest

from optimsyn.data.chat import sample_of
from optimsyn.data.records import Question
from optimsyn.llm.control_tokens import Controls, controls_of, data_ids, rendered
from optimsyn.llm.local.generation import prompt_ids
from optimsyn.target.encoding import IGNORE, encode, fitted
from tests.control_tokens_helpers import SHAPES, TEXT, Shape

ORDINARY = [
    *dict.fromkeys(TEXT),
    "",
    " ",
    "a",
    " two  blanks and\ta tab\n",
    "<b>bold</b> <br/> a<b>c [1] [see INST] {x} <|> |> <",
    "naïve façade, Ελληνικά, 日本語, العربية, 🦊",
    "\n\n\n code:\n\n    return x\n",
]


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name, scope="module")
def shape(request: pytest.FixtureRequest) -> Shape:
    found: Shape = request.param
    return found


@pytest.fixture(scope="module")
def tokenizer(shape: Shape) -> Any:
    return shape.tokenizer()


def _dirty(shape: Shape, text: str = "ends") -> str:
    """A text with every control token, on its own, inside of words and side by side."""
    every = [*shape.controls, *(plain for plain in shape.plain)]
    return f"{text} " + " ".join(every) + " x".join(every) + "".join(every) + f" {every[-1]}"


def _control_ids(shape: Shape, tokenizer: Any) -> set[int]:
    ids = {tokenizer.convert_tokens_to_ids(string) for string in (*shape.controls, *shape.plain)}
    return ids - {tokenizer.unk_token_id}


def test_data_alone_has_no_control_token(shape: Shape, tokenizer: Any) -> None:
    controls = controls_of(tokenizer)
    assert {*shape.controls, *shape.plain} <= set(controls.strings)
    dirty = _dirty(shape)
    inner = controls.encode(controls.masked(dirty), add_special_tokens=False)
    assert not _control_ids(shape, tokenizer) & set(inner.ids)
    assert _control_ids(shape, tokenizer) & set(tokenizer(dirty, add_special_tokens=False)["input_ids"])
    # What the tokenizer itself puts around a text stays.
    around = Counter(data_ids(tokenizer, dirty)) - Counter(inner.ids)
    assert around == Counter(tokenizer("a")["input_ids"]) - Counter(
        tokenizer("a", add_special_tokens=False)["input_ids"]
    )
    # Byte-level tokens can be read back letter by letter; other vocabularies lack some of the letters.
    if shape.name in ("llama 3", "chatml", "deepseek", "harmony", "gpt"):
        assert tokenizer.decode(inner.ids) == dirty


def test_ordinary_text_has_the_ids_it_always_had(shape: Shape, tokenizer: Any) -> None:
    """The copy with other names, which is used only where data holds control strings, agrees on all other text."""
    controls = controls_of(tokenizer)
    data = controls.masked(shape.controls[0])
    for text in ORDINARY:
        for special in (False, True):
            expected = tokenizer(text, add_special_tokens=special)["input_ids"]
            assert controls.encode(controls.masked(text), add_special_tokens=special).ids == expected
        # Between control tokens that a template wrote.
        for control in shape.controls[:3]:
            framed = f"{control}{text}{control} {text}"
            expected = tokenizer(framed, add_special_tokens=False)["input_ids"]
            found = controls.encode(data + framed, add_special_tokens=False)
            assert found.ids[-len(expected) :] == expected
            assert found.offsets is not None, "piece by piece, without a copy"


def test_masks_are_as_long_as_what_they_stand_for(shape: Shape, tokenizer: Any) -> None:
    controls = controls_of(tokenizer)
    for text in [*ORDINARY, _dirty(shape), 2 * shape.controls[-1]]:
        masked = controls.masked(text)
        assert len(masked) == len(text)
        assert not controls.within(masked)
        assert controls.unmasked(masked) == text


def test_a_chat_has_the_template_s_control_tokens_and_no_others(shape: Shape, tokenizer: Any) -> None:
    if not shape.template:
        pytest.skip("a base model")
    clean = [{"role": "user", "content": "Which vitamin?"}]
    dirty = [{"role": "user", "content": _dirty(shape, "Which vitamin?")}]
    control = _control_ids(shape, tokenizer)

    def count(messages: list[dict[str, str]]) -> Counter[int]:
        return Counter(token for token in prompt_ids(tokenizer, messages) if token in control)

    assert count(clean) == count(dirty)
    if "strftime_now" not in shape.template:
        expected = tokenizer.apply_chat_template(clean, add_generation_prompt=True, enable_thinking=False)["input_ids"]
        assert prompt_ids(tokenizer, clean) == expected


@pytest.mark.parametrize("where", ["context", "question", "answer", "choices"])
def test_no_label_and_no_prompt_of_a_sample_holds_one(where: str, shape: Shape, tokenizer: Any) -> None:
    clean = Question(id="q", question="Which vitamin?", answer="vitamin C", context="Scurvy is a disease.")
    if where == "choices":
        dirty = clean.model_copy(
            update={"choices": ("vitamin C", _dirty(shape)), "answer_index": 1, "answer": _dirty(shape)}
        )
        clean = clean.model_copy(update={"choices": ("vitamin C", "ends"), "answer_index": 0})
    else:
        dirty = clean.model_copy(update={where: _dirty(shape, str(getattr(clean, where)))})
    control = _control_ids(shape, tokenizer)
    one, other = encode(tokenizer, sample_of(clean), 10_000), encode(tokenizer, sample_of(dirty), 10_000)

    def special(ids: list[int]) -> list[int]:
        return [token for token in ids if token in control]

    assert special(one.input_ids) == special(other.input_ids)
    assert special(one.labels) == special(other.labels)
    # A blank between answer and end may be part of the answer's last token.
    assert other.end_tokens in (one.end_tokens, one.end_tokens - 1)
    found, _ = fitted(tokenizer, sample_of(dirty), 10_000)
    assert found.offsets is not None
    gold = dirty.answer.strip()
    assert found.text[found.start : found.stop].strip() == gold
    # The labels are the answer's: together with what ends it they are no more and no less.
    labelled = [span for span, label in zip(found.offsets, other.labels, strict=False) if label != IGNORE]
    inside = [span for span in labelled if span[0] < found.stop]
    assert inside
    assert len(labelled) - len(inside) <= other.end_tokens


def test_a_long_context_is_cut_without_becoming_a_control_token(shape: Shape, tokenizer: Any) -> None:
    dirty = Question(
        id="q", question="Which vitamin?", answer="vitamin C", context=" ".join([_dirty(shape, "Scurvy")] * 6)
    )
    whole = encode(tokenizer, sample_of(dirty), 10_000)
    cut = encode(tokenizer, sample_of(dirty), len(whole.input_ids) // 2)
    control = _control_ids(shape, tokenizer)
    assert cut.truncated
    assert [t for t in cut.input_ids if t in control] == [t for t in whole.input_ids if t in control]


def test_a_tokenizer_that_cannot_be_copied_is_asked_piece_by_piece(
    shape: Shape, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unwilling:
        @staticmethod
        def from_str(text: str) -> None:
            raise ValueError("no copy")

    monkeypatch.setattr("tokenizers.Tokenizer", Unwilling)
    controls = Controls(tokenizer)
    ids, offsets = controls.encode(controls.masked(_dirty(shape)), add_special_tokens=False)
    assert offsets is None
    assert not _control_ids(shape, tokenizer) & set(ids)
    assert ids


def test_a_slow_tokenizer() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    dirty = "one</s>two <pad>three<extra_id_0>"
    ids = data_ids(tokenizer, dirty)
    assert ids[-1] == tokenizer.eos_token_id
    assert not set(ids[:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids[:-1]) == dirty
    assert data_ids(tokenizer, "plain") == tokenizer("plain")["input_ids"]


def test_a_template_that_tells_the_date_tells_the_same_one_every_day(
    shape: Shape, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "strftime_now" not in shape.template:
        pytest.skip("tells no date")
    question = Question(id="q", question="Which vitamin?", answer="vitamin C")
    messages = [{"role": "user", "content": "Which vitamin?"}]
    before = (encode(tokenizer, sample_of(question), 10_000).input_ids, prompt_ids(tokenizer, messages))

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 1, 2)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert tokenizer.apply_chat_template(messages, tokenize=False) != rendered(tokenizer, messages)
    assert (encode(tokenizer, sample_of(question), 10_000).input_ids, prompt_ids(tokenizer, messages)) == before
    assert "2024" in rendered(tokenizer, messages)
