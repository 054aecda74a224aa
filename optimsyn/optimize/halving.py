"""Successive halving as a method of prompt optimisation: many texts on few passages, the better half on twice as many.

A round holds the best text so far and new proposals from it. All are judged on the same passages; the better half goes
on, on twice as many, until one is left or all passages of the comparison are used. A proposal replaces the best text
only where its mean over all of these is higher. So most of the budget goes to texts that are worth it: where `gepa`
spends a whole comparison on whatever beats its parent on the minibatch, only the best of a round gets that far.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from optimsyn.base.seeds import derive_seed
from optimsyn.optimize.proposer import EvidenceProposer

if TYPE_CHECKING:
    from optimsyn.optimize.prompt_task import Candidate, PromptTask

# The most proposals in one round; later rounds know more.
MOST_PROPOSALS = 7


def search(task: PromptTask) -> str:
    """The text of the highest mean over all compared passages; the start text where none is better."""
    return _Search(task).run()


def rungs(first: int, passages: int) -> list[int]:
    """How many passages the texts of a round are judged on, one after the other: twice as many each time."""
    sizes = [min(first, passages)]
    while sizes[-1] < passages:
        sizes.append(min(2 * sizes[-1], passages))
    return sizes


def most_pairs(proposals: int, sizes: list[int]) -> int:
    """The most pairs that a round judges, beside those of the best text so far, which is known."""
    left, field, before, pairs = proposals, proposals + 1, 0, 0
    for size in sizes:
        pairs += left * (size - before)
        field, before = _half(field), size
        left = min(left, field)
    return pairs


def _half(field: int) -> int:
    return (field + 1) // 2


class _Search:
    """One search by rounds."""

    def __init__(self, task: PromptTask) -> None:
        from optimsyn.optimize.gepa import Proposer, reflector

        self.task = task
        self.sizes = rungs(task.config.minibatch, len(task.comparison))
        self.evidence = EvidenceProposer(task.start, lambda: task.judgements)
        self._reflect = None if task.reflection is None else Proposer(reflector(task), task)
        self._asked = 0

    def run(self) -> str:
        """The best text."""
        task, best = self.task, self.task.compare(self.task.start)
        while True:
            learned = set() if task.learning is task.comparison else {passage.id for passage in task.learning}
            known = {row.passage_id for row in task.judgements if row.guiding_text == best.guiding_text}
            if task.over(len(learned - known) + most_pairs(1, self.sizes)):
                break
            task.judge(best.guiding_text, task.learning)
            fits = [n for n in range(1, MOST_PROPOSALS + 1) if most_pairs(n, self.sizes) <= task.left]
            texts = self._proposals(best.guiding_text, fits[-1])
            if not texts:
                task.ended = "proposals"
                break
            best = self._round(best, texts)
        return best.guiding_text

    def _round(self, best: Candidate, texts: list[str]) -> Candidate:
        """The best text of a round; of equal ones, the earlier."""
        task, field = self.task, [best.guiding_text, *texts]
        for size in self.sizes:
            scores = {}
            for text in field:
                rows = task.judge(text, task.comparison[:size])
                scores[text] = sum(row.score for row in rows) / size
            # Sorting is stable: the best text so far stands first.
            ranked = sorted(field, key=lambda text: -scores[text])
            field = ranked[: _half(len(field))]
            for text in ranked[len(field) :]:
                if text != best.guiding_text:
                    task.reject(text, scores[text], passages=size)
        winner = task.compare(field[0])
        return winner if winner.score > best.score else best

    def _proposals(self, parent: str, most: int) -> list[str]:
        """Up to so many new texts from the best one."""
        tried = {candidate.guiding_text for candidate in self.task.candidates}
        texts: list[str] = []
        # A reflection model may repeat itself.
        for _ in range(2 * most):
            if len(texts) == most:
                break
            text = self.evidence.propose(parent) if self._reflect is None else self._reflected(parent)
            if text is None and self._reflect is None:
                break
            if text and text not in tried:
                tried.add(text)
                texts.append(text)
        return texts

    def _reflected(self, parent: str) -> str | None:
        """A text by the reflection model, each time with other feedback and another seed; None: it was unusable."""
        import dspy

        from optimsyn.llm.dspy_bridge import make_lm

        assert self._reflect is not None
        assert self.task.reflection is not None
        self._asked += 1
        seed = derive_seed(self.task.seed, "halving", self._asked)
        ids = {passage.id: passage for passage in self.task.learning}
        known = [row for row in self.task.judgements if row.guiding_text == parent and row.passage_id in ids]
        rows = [(row, outputs) for row in known if (outputs := self.task.program.outputs(row)) is not None]
        shown = random.Random(seed).sample(rows, min(self.task.config.minibatch, len(rows)))
        feedback: list[dict[str, Any]] = [
            {
                "Inputs": {"passage": ids[row.passage_id].text, "kind": row.kind},
                "Generated Outputs": outputs,
                "Feedback": self.task.reward.feedback(row),
            }
            for row, outputs in shown
        ]
        lm = make_lm(self.task.reflection, temperature=1.0).copy(seed=seed)
        with dspy.context(lm=lm):
            proposed = self._reflect({"write": parent}, {"write": feedback}, ["write"])
        self.task.watch.raise_first()
        return self.task.program.under(proposed["write"]).guiding_text if proposed else None
