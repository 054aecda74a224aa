"""The one format of pairs and questions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimsyn.base.errors import DataError
from optimsyn.data.chat import sample_of, split_context
from optimsyn.data.records import Pair, Question


def question(**values: object) -> Question:
    return Question.model_validate({"id": "q", "question": "Which vitamin?", "answer": "C", **values})


def test_closed_book_free_answer() -> None:
    sample = sample_of(question(subtask="nutrition"))
    assert sample.prompt == "Question: Which vitamin?\nAnswer:"
    assert sample.completion == " C"
    assert sample.subtask == "nutrition"
    assert [m["content"] for m in sample.messages] == ["Which vitamin?", "C"]


def test_open_book_multiple_choice() -> None:
    sample = sample_of(question(choices=("A", "C"), answer_index=1, context="Lemons hold C.\n"))
    assert sample.prompt == "Passage: Lemons hold C.\nQuestion: Which vitamin?\nA. A\nB. C\nAnswer:"
    assert sample.completion == " C"
    # A chat reads like one: the text, then the question, in nobody's labels.
    assert [m["content"] for m in sample.messages] == ["Lemons hold C.\n\nWhich vitamin?\nA. A\nB. C", "C"]


def test_pair_and_question_of_equal_content_are_equal_samples() -> None:
    content = {"question": "Q?", "answer": "yes", "choices": ("yes", "no"), "answer_index": 0, "context": "Text."}
    pair = sample_of(Pair(id="x", passage_id="p", **content))  # type: ignore[arg-type]
    expert = sample_of(Question(id="x", **content))  # type: ignore[arg-type]
    assert pair == expert.model_copy(update={"subtask": ""})


def test_another_option_keeps_the_prompt() -> None:
    item = question(choices=("A", "C"), answer_index=1)
    assert sample_of(item, "A").prompt == sample_of(item).prompt
    assert sample_of(item, "A").completion == " A"


def test_more_options_than_letters_are_refused() -> None:
    options = tuple(str(i) for i in range(27))
    with pytest.raises(DataError, match="27 choices"):
        sample_of(question(choices=options, answer_index=0))


@given(context=st.text(), text=st.text(min_size=1).filter(str.strip))
def test_the_context_is_found_again_whatever_it_holds(context: str, text: str) -> None:
    sample = sample_of(question(question=text, context=f"{context}\nQuestion: trap\n{context}"))
    left, rest = split_context(sample.prompt)
    assert left + rest == sample.prompt
    assert rest == f"Question: {text.strip()}\nAnswer:"
    assert split_context(sample.prompt, sample.context) == (left, rest)
    left, rest = split_context(sample.messages[0]["content"], sample.context)
    assert left == f"{sample.context}\n\n"
    assert rest == text.strip()


def test_a_closed_book_prompt_has_no_context() -> None:
    prompt = sample_of(question(question="Passage: really?")).prompt
    assert split_context(prompt) == ("", prompt)
