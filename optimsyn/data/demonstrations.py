"""The demonstrations of the prompts: two passages, each with a rubric and the pair that follows from it.

A base model without a chat template learns the form of a reply from these alone, so they are few, short and in a rare
domain (comets and birds). Their content must never appear in a dataset; the check `demo_copy` refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimsyn.data.records import Rubric


@dataclass(frozen=True)
class Demo:
    """One worked example.

    Attributes:
        passage: The text that everything else follows from.
        guiding_text: A guiding text that fits this rubric.
        quote: The sentence of the passage that the pair is made of, word for word.
        closed_question: The same fact as a yes-or-no question.
        verdict: Its answer, "yes" or "no".
    """

    passage: str
    guiding_text: str
    rubric: Rubric
    quote: str
    question: str
    answer: str
    wrong: tuple[str, ...]
    closed_question: str
    verdict: str


DEMOS: tuple[Demo, ...] = (
    Demo(
        passage="Comets consist mostly of ice and dust. Halley's Comet was last seen in 1986 and passes the Earth "
        "about every 76 years.",
        guiding_text="Ask for exact dates and figures that a student of astronomy should know.",
        rubric=Rubric(
            question_type="the year in which a comet was seen",
            question_quality="names the comet in full and asks for one year",
            answer_quality="a year and nothing else",
            alignment="the year is that of the last time, not of the next",
            trainability="a date from which the comet's return can be worked out",
        ),
        quote="Halley's Comet was last seen in 1986 and passes the Earth about every 76 years.",
        question="When was Halley's Comet last seen?",
        answer="1986",
        wrong=("1910", "1945", "2003", "1835", "2061", "1969", "1759"),
        closed_question="Does Halley's Comet pass the Earth about every 76 years?",
        verdict="yes",
    ),
    Demo(
        passage="Swallows feed on insects that they catch in flight. The barn swallow builds its nest from pellets of "
        "mud under the roofs of barns.",
        guiding_text="Ask what sets one animal apart from its relatives.",
        rubric=Rubric(
            question_type="the material that a bird builds with",
            question_quality="names the bird and asks for what its nest is made of",
            answer_quality="the material in the words of the passage",
            alignment="the material is that of the nest, not its food",
            trainability="links the bird to the habit that sets it apart",
        ),
        quote="The barn swallow builds its nest from pellets of mud under the roofs of barns.",
        question="What does the barn swallow build its nest from?",
        answer="pellets of mud",
        wrong=("dry grass", "twigs", "moss", "feathers", "reeds", "bark", "wool"),
        closed_question="Does the barn swallow build its nest from twigs?",
        verdict="no",
    ),
)
