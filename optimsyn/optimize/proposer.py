"""Proposes guiding texts from measured evidence, without any language model.

A small base model reflects only junk, and not everybody has a strong one. But what a reflection model reads out of the
feedback is mostly countable: which question types earned more than others on the same passages, which check failed
most, how long the good answers were, which subtask was helped least. Each of these becomes one sentence with an
estimate of its gain in units of reward. A proposal is the person's own text plus the most promising sentences, so that
every candidate stays readable and says only what was measured.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimsyn.data.forms import form_named
from optimsyn.data.text import word_count
from optimsyn.reward.judgements import Judgement

# Sentences in one candidate at most: the rubric model may be small and its context short.
MOST_ADVICE = 4
# Added sentences in one proposal: two, so that a search with few proposals makes progress.
ADDED = 2
# Weight of the common mean when few pairs were seen: estimates from n pairs are shrunk by n / (n + PRIOR).
PRIOR = 2.0
# The same for a passage's own mean: passages differ much, so it needs fewer pairs.
PASSAGE_PRIOR = 1.0
# Smallest group of pairs to compare with others; a weak model's question types are mostly unique.
SMALLEST_GROUP = 2
# Longest quotation from a rubric, in characters.
LONGEST_QUOTE = 90
_HANGING = frozenset(
    "a an the of or and in on at to by for from with as is are was that which who whose than not non if its".split()
)

CURES = {
    "rubric_format": "Keep each criterion to one short line and give all five of them.",
    "pair_format": "Ask for one question and one short answer only.",
    "format": "Ask for one complete question and one complete answer.",
    "length": "Keep the question to one sentence and the answer to a few words.",
    "copied_passage": "Ask for the fact in new words rather than a sentence copied from the text.",
    "answered_by_itself": "The question must not contain its own answer.",
    "mentions_document": "The question must make sense without the text and name its subject in full.",
    "whole_question": "Ask one whole question in plain grammar.",
    "whole_answer": "Give a whole answer that is not cut off.",
    "stands_alone": "Name the subject, so that the question can be answered without the text.",
    "choices_well_formed": "The choices must be distinct, alike in form, and only one of them right.",
    "statement_well_formed": "Write a statement, not a question.",
    "reason_well_formed": "The reason must be one short sentence that says more than the statement.",
    "reason_grounded": "The reason must be a fact of the text, in its own words.",
    "figure_well_formed": "The answer must be one figure with its unit and nothing else.",
    "figure_derived": "The calculation must use figures as the text prints them and must give exactly the answer.",
    "long_answer_well_formed": "The answer must have several complete sentences, each said once.",
    "long_answer_grounded": "The answer must keep to what the text says, in its own words.",
    "items_well_formed": "Ask for two things or more, each of them named once.",
    "items_grounded": "Each item must be named in the text.",
    "code_well_formed": "The code must be complete and valid.",
    "code_task_grounded": "The task must be about something that the text says.",
    "reasoning_well_formed": "The reasoning must be a few sentences that come to the answer.",
    "reasoning_grounded": "The reasoning must begin with facts of the text.",
    "dialogue_well_formed": "The dialogue must have several different questions, each with its answer.",
    "dialogue_grounded": "Each answer of the dialogue must be stated in the text.",
    "grounded": "The answer must be stated in the text, in its own words.",
    "answer_fits_question": "The answer must be of the kind that the question asks for.",
    "near_duplicate_question": "Ask about a detail that is seldom asked about.",
    "demo_copy": "Write about this text only, not about the examples.",
    "unsafe": "Keep to harmless facts.",
}


@dataclass(frozen=True)
class Advice:
    """One sentence of guidance that a measurement suggests.

    Attributes:
        topic: Sentences of one topic replace each other in a candidate.
        text: The sentence.
        gain: Estimated gain in mean reward from following it.
    """

    topic: str
    text: str
    gain: float


class EvidenceProposer:
    """An instruction proposer for `dspy.GEPA` that reads the judgements instead of asking a model.

    Deterministic: the same judgements give the same proposals, so that a resumed search is answered from the cache.

    Args:
        base: The person's guiding text; every candidate begins with it.
        evidence: Returns the judgements so far, in an order that does not depend on timing.
    """

    def __init__(self, base: str, evidence: Callable[[], Sequence[Judgement]]) -> None:
        self.base = base.strip()
        self._evidence = evidence
        self._made: dict[str, tuple[Advice, ...]] = {self.base: ()}
        self.exhausted = False

    def __call__(
        self,
        candidate: Mapping[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: Sequence[str],
    ) -> dict[str, str]:
        """A new text for each component (GEPA's ProposalFn); empty when the evidence suggests nothing new."""
        proposals = {}
        for name in components_to_update:
            text = self.propose(candidate[name])
            if text is not None:
                proposals[name] = text
        self.exhausted = not proposals
        return proposals

    def propose(self, parent: str) -> str | None:
        """The next text from a parent: its updated advice plus the strongest advice that it lacks.

        Falls back to adding one sentence instead of two, then to dropping one, and never repeats a text.
        """
        advice = gather_advice(self._evidence())
        newest = {item.topic: item for item in advice}
        inherited = [newest.get(item.topic, item) for item in self._made.get(parent.strip(), ())]
        held = {item.topic for item in inherited}
        fresh = [item for item in advice if item.topic not in held]
        plans: list[list[Advice]] = [[*inherited, *fresh[:ADDED]]]
        plans += [[*inherited, item] for item in fresh]
        plans += [[*inherited[:i], *inherited[i + 1 :], item] for item in fresh for i in range(len(inherited))]
        plans += [[*inherited[:i], *inherited[i + 1 :]] for i in range(len(inherited))]
        plans.append(inherited)
        for plan in plans:
            chosen = tuple(sorted(plan, key=lambda item: (-item.gain, item.topic))[:MOST_ADVICE])
            text = " ".join([self.base, *(item.text for item in chosen)])
            if text not in self._made:
                self._made[text] = chosen
                return text
        return None


def gather_advice(rows: Sequence[Judgement]) -> list[Advice]:
    """All advice from the judgements, the most promising first.

    Rewards of valid pairs are compared after subtracting their passage's (shrunk) mean, since some passages teach more
    than others with any question.
    """
    valid = [row for row in rows if row.valid]
    advice = [*_on_checks(rows)]
    if len(valid) >= 2:
        advantage = _advantages(valid)
        advice += [*_on_types(valid, advantage), *_on_openings(valid, advantage), *_on_criteria(valid, advantage)]
        advice += [*_on_length(valid, advantage), *_on_subtasks(valid)]
    return sorted((item for item in advice if item.gain > 0), key=lambda item: (-item.gain, item.topic))


def _advantages(valid: Sequence[Judgement]) -> dict[str, float]:
    """Reward minus the mean of its passage, by key; the passage's mean is shrunk to the common mean."""
    common = sum(row.reward for row in valid) / len(valid)
    of: dict[str, list[float]] = defaultdict(list)
    for row in valid:
        of[row.passage_id].append(row.reward)
    mean = {key: (sum(all_) + PASSAGE_PRIOR * common) / (len(all_) + PASSAGE_PRIOR) for key, all_ in of.items()}
    return {row.key: row.reward - mean[row.passage_id] for row in valid}


def _shrunk_mean(values: Sequence[float]) -> float:
    return sum(values) / (len(values) + PRIOR)


def _on_checks(rows: Sequence[Judgement]) -> list[Advice]:
    """The advice for the check that fails most; its gain is the reward that failures lose against a valid pair."""
    failed = Counter(name for row in rows if not row.valid for name in row.failed[:1])
    if not failed:
        return []
    valid = [row.reward for row in rows if row.valid]
    worth = _shrunk_mean(valid) if valid else 0.0
    name, count = min(failed.items(), key=lambda item: (-item[1], item[0]))
    lost = [worth - row.reward for row in rows if not row.valid and row.failed[:1] == (name,)]
    text = CURES.get(name)
    if text is None:
        reason = next((row.reasons[name] for row in rows if row.reasons.get(name)), "")
        text = f"Avoid what the check '{name.replace('_', ' ')}' refuses{': ' + _quote(reason) if reason else ''}."
    return [Advice("check", text, count / len(rows) * (sum(lost) / len(lost)))]


def _on_types(valid: Sequence[Judgement], advantage: Mapping[str, float]) -> list[Advice]:
    """The question types that earned most and least, where at least two types were seen more than once."""
    by_type: dict[str, list[float]] = defaultdict(list)
    for row in valid:
        if row.rubric is not None and (name := _phrase(row.rubric.question_type)):
            by_type[name].append(advantage[row.key])
    by_type = {name: values for name, values in by_type.items() if len(values) >= SMALLEST_GROUP}
    if len(by_type) < 2:
        return []
    order = sorted(by_type, key=lambda name: (-_shrunk_mean(by_type[name]), name))
    good = [name for name in order[:2] if _shrunk_mean(by_type[name]) > 0]
    advice = []
    if good:
        advice.append(
            Advice(
                "type",
                f"Question types that taught most: {'; '.join(_quote(name) for name in good)}.",
                _shrunk_mean(by_type[good[0]]),
            )
        )
    worst = order[-1]
    share = len(by_type[worst]) / len(valid)
    advice.append(Advice("type to avoid", f"Seldom ask for: {_quote(worst)}.", -_shrunk_mean(by_type[worst]) * share))
    return advice


def _on_openings(valid: Sequence[Judgement], advantage: Mapping[str, float]) -> list[Advice]:
    """The first word of the questions that earned most; unlike types, it is never a model's own wording."""
    by_word: dict[str, list[float]] = defaultdict(list)
    for row in valid:
        if row.pair is not None and (words := _phrase(row.pair.question).split()):
            by_word[words[0]].append(advantage[row.key])
    by_word = {word: values for word, values in by_word.items() if len(values) >= SMALLEST_GROUP}
    if len(by_word) < 2:
        return []
    best = min(by_word, key=lambda word: (-_shrunk_mean(by_word[word]), word))
    gain = _shrunk_mean(by_word[best])
    return [Advice("opening", f"Questions that begin with '{best.capitalize()}' taught most.", gain)]


def _on_criteria(valid: Sequence[Judgement], advantage: Mapping[str, float]) -> list[Advice]:
    """The question criterion of the best pair, said to be better than that of the worst."""
    written = [row for row in valid if row.rubric is not None and row.rubric.question_quality.strip()]
    if len(written) < 2:
        return []
    best = max(written, key=lambda row: (advantage[row.key], row.key))
    worst = min(written, key=lambda row: (advantage[row.key], row.key))
    assert best.rubric is not None
    assert worst.rubric is not None
    good, bad = _quote(best.rubric.question_quality), _quote(worst.rubric.question_quality)
    if good == bad:
        return []
    return [Advice("criterion", f"A criterion that worked well: {good}.", advantage[best.key] / (1 + PRIOR))]


def _on_length(valid: Sequence[Judgement], advantage: Mapping[str, float]) -> list[Advice]:
    """Whether the shorter or the longer half of the answers earned more."""
    sized = sorted(
        (word_count(row.pair.answer), advantage[row.key])
        for row in valid
        if row.pair is not None and form_named(row.kind).free_length
    )
    half = len(sized) // 2
    if half < 2:
        return []
    short, long = sized[:half], sized[-half:]
    words = [sum(words for words, _ in part) / half for part in (short, long)]
    if words[0] == words[1]:
        return []
    gap = _shrunk_mean([gain for _, gain in short]) - _shrunk_mean([gain for _, gain in long])
    wanted = max(1, round(words[0] if gap > 0 else words[1]))
    unit = "word" if wanted == 1 else "words"
    return [Advice("length", f"Answers of about {wanted} {unit} work best.", abs(gap) / 2)]


def _on_subtasks(valid: Sequence[Judgement]) -> list[Advice]:
    """The subtask that was helped least; its gain is the rise of the mean if it catches up with the others."""
    totals: dict[str, list[float]] = defaultdict(list)
    for row in valid:
        for name, value in row.by_subtask.items():
            totals[name].append(value)
    if len(totals) < 2:
        return []
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    weakest = min(means, key=lambda name: (means[name], name))
    others = [value for name, value in means.items() if name != weakest]
    gain = (sum(others) / len(others) - means[weakest]) / len(means)
    shrunk = gain * len(valid) / (len(valid) + PRIOR) / 2
    spoken = re.sub(r"[_\-]+", " ", weakest.rsplit("/", 1)[-1]).strip()
    return [Advice("subtask", f"More questions should help with {spoken}.", shrunk)]


def _phrase(text: str) -> str:
    """A model's question type in normalised form."""
    return re.sub(r"\s+", " ", text).strip(" .;:,'\"").lower()[:LONGEST_QUOTE]


def _quote(text: str) -> str:
    """A quotation that fits into a sentence: one line, no final stop, cut after a complete phrase."""
    line = re.sub(r"\s+", " ", text).strip(" .;:,'\"")
    if len(line) > LONGEST_QUOTE:
        line = line[:LONGEST_QUOTE].rsplit(" ", 1)[0].rstrip(" ,;:")
    # A schema may have cut the model's own words in the middle of a phrase.
    words = line.split(" ")
    while len(words) > 1 and words[-1].strip(",;:").lower() in _HANGING:
        words.pop()
    return " ".join(words).rstrip(" ,;:")
