"""The evidence proposer: what it reads out of judgements, and that it never repeats itself."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from optimize_helpers import BASE_TEXT

from optimsyn.data.records import Pair, Rubric
from optimsyn.optimize.proposer import LONGEST_QUOTE, MOST_ADVICE, EvidenceProposer, gather_advice
from optimsyn.reward.judgements import Judgement


def row(
    key: str, reward: float, *, passage: str = "p", kind: str = "mechanism", quality: str = "clear",
    answer: str = "one", subtasks: dict[str, float] | None = None, failed: str = "",
) -> Judgement:  # fmt: skip
    rubric = Rubric(question_type=kind, question_quality=quality, answer_quality="a", alignment="b", trainability="c")
    more: dict[str, Any] = (
        {"valid": False, "failed": (failed,), "reasons": {failed: "because of this"}}
        if failed
        else {"valid": True, "influence": reward, "by_subtask": subtasks or {}}
    )
    pair = Pair(id=key, question="q?", answer=answer, passage_id=passage)
    return Judgement(key=key, passage_id=passage, kind="free", rubric=rubric, pair=pair, reward=reward, **more)


def texts(rows: list[Judgement]) -> dict[str, str]:
    return {item.topic: item.text for item in gather_advice(rows)}


def test_types_are_compared_within_passages() -> None:
    # On the rich passage everything earns more; the type that is better on each passage is `cause`.
    rows = [
        row("a", 0.9, passage="rich", kind="Definition."),
        row("b", 1.0, passage="rich", kind="cause"),
        row("c", 0.1, passage="poor", kind="cause"),
        row("d", 0.0, passage="poor", kind="definition"),
        row("e", 0.9, passage="rich", kind=" definition"),
    ]
    advice = texts(rows)
    assert advice["type"] == "Question types that taught most: cause."
    assert advice["type to avoid"] == "Seldom ask for: definition."


def test_the_most_frequent_failure_is_cured_and_weighs_most_when_it_is_frequent() -> None:
    rows = [row(f"f{i}", -0.1, failed="grounded") for i in range(6)] + [row("u", -0.1, failed="unsafe"), row("v", 0.2)]
    first = gather_advice(rows)[0]
    assert first.topic == "check"
    assert "stated in the text" in first.text
    unknown = texts([row("x", -0.1, failed="my_plugin")])
    assert unknown["check"] == "Avoid what the check 'my plugin' refuses: because of this."


def test_length_subtask_and_criterion() -> None:
    high, low = {"x/yes_no": 0.5, "y": 0.1}, {"x/yes_no": 0.3, "y": -0.1}
    rows = [
        row(f"s{i}", 0.3, passage=f"p{i}", answer="two words", quality="short one", subtasks=high) for i in range(4)
    ] + [row(f"l{i}", 0.1, passage=f"p{i}", answer="a b c d e f g h", quality="long", subtasks=low) for i in range(4)]
    advice = texts(rows)
    assert advice["length"] == "Answers of about 2 words work best."
    assert advice["subtask"] == "More questions should help with y."
    assert advice["criterion"] == "A criterion that worked well: short one."


def test_nothing_measured_nothing_proposed() -> None:
    proposer = EvidenceProposer(BASE_TEXT, list)
    assert proposer({"write": BASE_TEXT}, {}, ["write"]) == {}
    assert proposer.exhausted
    assert texts([row("a", 0.1), row("b", 0.1)]) == {}


JUDGED = st.lists(
    st.builds(
        lambda reward, passage, kind, answer, failed: (reward, passage, kind, answer, failed),
        st.floats(-1, 1),
        st.sampled_from(["p", "q"]),
        st.text(max_size=200),
        st.sampled_from(["a", "a b", "a b c d"]),
        st.sampled_from(["", "", "grounded", "plugin"]),
    ),
    max_size=12,
)


@given(JUDGED)
@settings(max_examples=60, deadline=None)
def test_proposals_keep_the_persons_text_stay_short_and_never_repeat(drawn: list[Any]) -> None:
    rows = [
        row(str(i), reward, passage=passage, kind=kind, quality=kind, answer=answer, failed=failed)
        for i, (reward, passage, kind, answer, failed) in enumerate(drawn)
    ]
    proposer = EvidenceProposer(BASE_TEXT, lambda: rows)
    seen = {BASE_TEXT}
    parent = BASE_TEXT
    for _ in range(30):
        text = proposer.propose(parent)
        if text is None:
            break
        assert text.startswith(BASE_TEXT)
        assert text not in seen
        assert "\n" not in text
        assert len(text) < len(BASE_TEXT) + MOST_ADVICE * (2 * LONGEST_QUOTE + 80)
        seen.add(text)
        parent = text
    # The same evidence in another process gives the same proposals.
    assert EvidenceProposer(BASE_TEXT, lambda: rows).propose(BASE_TEXT) == EvidenceProposer(
        BASE_TEXT, lambda: rows
    ).propose(BASE_TEXT)


def test_every_check_has_a_cure() -> None:
    from optimsyn.optimize.proposer import CURES
    from optimsyn.programs.checks import BUILT_IN

    assert set(CURES) == {*BUILT_IN, "rubric_format", "pair_format"}


def test_unique_types_are_no_evidence_but_openings_are() -> None:
    rows = [row(f"h{i}", 0.3, passage=f"p{i}", kind=f"type {i}").model_copy() for i in range(3)]
    rows = [r.model_copy(update={"pair": r.pair.model_copy(update={"question": "How so?"})}) for r in rows if r.pair]
    others = [row(f"w{i}", 0.1, passage=f"p{i}", kind=f"kind {i}") for i in range(3)]
    others = [
        r.model_copy(update={"pair": r.pair.model_copy(update={"question": "Who is it?"})}) for r in others if r.pair
    ]
    advice = texts([*rows, *others])
    assert advice["opening"] == "Questions that begin with 'How' taught most."
    assert "type" not in advice


def test_quotations_end_with_a_whole_thought() -> None:
    rows = [row("a", 0.3, quality="names the diet that is a,"), row("b", 0.1, passage="q", quality="x")]
    assert texts(rows)["criterion"] == "A criterion that worked well: names the diet."
