"""Rubrics that suit any passage, one form each: for passages that nobody wrote rubrics for.

The writer practises on some of them (`tools/train_writer.py`); others are kept for measuring (`benchmarks/writer.py`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from optimsyn.data.records import Rubric

# For each form: what the question asks for, and what its answer is like.
PRACTICE: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "figure": (
        (
            "a figure with its unit: how much, how many or how long",
            "asks for an amount that is stated in numbers",
            "one quantity, with what it is counted in",
            "a number to remember, such as a sum, a share or a count",
        ),
        ("the number and its unit, nothing else", "a bare figure with unit, no sentence", "digits and unit as printed"),
    ),
    "name": (
        (
            "asks who or what something is called; a name",
            "the name of a person, place, body or thing",
            "which one it was, answered by a proper name",
        ),
        ("the name alone, one to six words", "only the name, without title or remark", "just what it is called"),
    ),
    "date": (
        (
            "asks when something happened; a date",
            "a point in time: a year, a day or a month",
            "when it took place, as a date",
        ),
        ("the date as it stands, no more", "year or day alone", "a point in time in at most a few words"),
    ),
    "cause": (
        (
            "asks why: the cause of something that is described",
            "the reason behind a fact, a why-question",
            "what led to this; a cause",
        ),
        (
            "one clause that gives the reason",
            "the cause in a few words, from the text",
            "because and what follows, one clause",
        ),
    ),
    "definition": (
        (
            "what a term means; a definition",
            "asks for the meaning of a word that is explained",
            "defines a technical word of the subject",
        ),
        (
            "one phrase that says what the term means",
            "the meaning in a clause, without examples",
            "a defining phrase of a dozen words",
        ),
    ),
    "comparison": (
        (
            "compares two things that are both described",
            "how one thing differs from another",
            "a comparison between two groups, times or places",
        ),
        (
            "one sentence that names both sides",
            "both things and what sets them apart",
            "a sentence with more, less or while",
        ),
    ),
    "list": (
        (
            "a list: which things belong together",
            "asks for several items at once",
            "names all parts, kinds or members",
        ),
        ("all items with commas, in their order", "two or more items in a row", "the full list without a sentence"),
    ),
    "verdict": (
        (
            "a yes, no or maybe question, with what it rests on",
            "asks whether something holds; answer yes, no or maybe",
            "a claim to be judged: yes, no or maybe",
        ),
        (
            "begins with yes, no or maybe, then the evidence",
            "the verdict first, then how strong the support is",
            "yes, no or maybe, a colon and the ground",
        ),
    ),
    "clause": (
        (
            "an exact quotation: the words of one provision or statement",
            "asks what is said, to be quoted word for word",
            "the wording of a statement, quoted exactly",
        ),
        ("the words unchanged, from the text", "a clause of five words or more, verbatim", "copied letter by letter"),
    ),
    "options": (
        (
            "multiple choice: one right option among four",
            "a question with four options of the same kind",
            "choose one of four, all alike in form",
        ),
        (
            "four short options, one of them right",
            "the right option, word for word as listed",
            "options of like length and kind",
        ),
    ),
    "explanation": (
        (
            "an explanation in two sentences of how or why",
            "asks to explain something in two sentences",
            "how something works, told in two sentences",
        ),
        ("two full sentences, no more", "exactly two sentences", "a first sentence and a second that builds on it"),
    ),
}
MEASURED: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "figure": (
        ("wants a quantity in numbers", "asks how large something is, in figures"),
        ("only the number together with its unit", "short: figure plus unit"),
    ),
    "name": (
        ("wants to know who, where or which by name", "the proper name of somebody or something"),
        ("a name and nothing around it", "the bare name"),
    ),
    "date": (
        ("wants the time of an event: a year or a date", "in which year or on which day"),
        ("the year or date by itself", "a date, without a sentence"),
    ),
    "cause": (
        ("wants the reason for what is reported: why", "asks about the cause of an effect"),
        ("the reason, in one clause", "states what brought it about"),
    ),
    "definition": (
        ("wants a term defined", "asks what a word of the trade means"),
        ("the definition as one phrase", "says what it is, in some ten words"),
    ),
    "comparison": (
        ("wants two things compared", "asks for the difference between two things"),
        ("one sentence about both", "says in what the two differ"),
    ),
    "list": (
        ("wants several things listed", "asks for all members of a group; a list"),
        ("the items, separated by commas", "every item in one row"),
    ),
    "verdict": (
        ("wants a yes, a no or a maybe", "is it so: yes, no or maybe"),
        ("yes, no or maybe first, evidence after it", "the verdict with its ground"),
    ),
    "clause": (
        ("wants the exact words of a statement", "a passage to quote literally"),
        ("the wording as it stands, unaltered", "a literal quotation"),
    ),
    "options": (
        ("wants four options with one right answer", "a multiple-choice question with four options"),
        ("one of the four options", "the right one of four like options"),
    ),
    "explanation": (
        ("wants an explanation of two sentences", "explain in two sentences how it comes about"),
        ("two sentences", "two sentences, the second goes on from the first"),
    ),
}
_QUESTION = (
    "stands alone and names its subject",
    "names the thing that is asked about, so only one answer fits",
    "one plain question that needs no other text to be understood",
    "mentions who or what is meant, never the text itself",
    "clear to somebody who has only the question",
)
_ALIGNMENT = (
    "the answer gives what the question asks for and nothing else",
    "question and answer are about the same statement",
    "the quoted sentence proves the answer",
    "everything in the answer stands in the text",
)
_TRAINABILITY = (
    "teaches a fact of the subject that returns in examinations",
    "worth knowing for people in this field",
    "a model that learns it answers similar questions better",
    "concerns a main point and not a detail of the wording",
)


def rubric_for(form: str, texts: Mapping[str, tuple[Sequence[str], Sequence[str]]], draw: random.Random) -> Rubric:
    """A rubric that asks for one form.

    Args:
        form: A name of `writer_forms.FORMS`.
        texts: `PRACTICE` or `MEASURED`.
        draw: Chooses among the wordings.
    """
    types, answers = texts[form]
    return Rubric(
        question_type=draw.choice(types),
        question_quality=draw.choice(_QUESTION),
        answer_quality=draw.choice(answers),
        alignment=draw.choice(_ALIGNMENT),
        trainability=draw.choice(_TRAINABILITY),
    )
