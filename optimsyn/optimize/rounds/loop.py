"""The rounds of a policy's training: sample, judge, train on all that was judged, measure, go on or stop.

Every round trains the starting policy anew, on the rubrics of all rounds: nothing that was judged is thrown away, and
what one round learned by mistake the next can correct. With `warm_up_again` the target is warmed up anew after each
round that gained, and judges all rubrics so far again, so that no two are compared by different targets. A killed
training goes on with the group that it was at: rubrics are kept with their rewards, and each group and each training
has a seed of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import Passage
from optimsyn.llm.local.group_sampling import rows_at_once
from optimsyn.llm.local.turns import turn
from optimsyn.optimize.policy_task import RUBRICS, PolicyTask
from optimsyn.optimize.quiet import quiet
from optimsyn.optimize.rounds.held import compared, end_of, held_ids
from optimsyn.optimize.rounds.judged import JudgedRubric, Place, RubricFile, by_passage, has_signal
from optimsyn.optimize.rounds.taught import taught_rubrics
from optimsyn.optimize.rounds.training import Learn
from optimsyn.optimize.rounds.weights import kl_on_fresh_rubrics, kl_per_token, put_weights, weights_of

if TYPE_CHECKING:
    from optimsyn.optimize.rounds.weights import Weights
    from optimsyn.reward.drafting import RubricRequest
    from optimsyn.reward.judgements import Judgement

_RUBRIC_MODEL = "rubric"  # in the meter of a stage
_BATCHES = 2


def train(task: PolicyTask, learn: Learn) -> Path:
    """Trains in rounds, or goes on with the round of an earlier, killed process, and returns the adapter's folder.

    The history has one row a round: step (its number), reward and reward_std (of the sampled rubrics, which are of the
    policy before the round's training), valid (share), completion_length (tokens), unfinished (share cut at
    max_tokens), redrawn (groups drawn again), groups_without_signal (share of groups, after that), trained_on
    (rubrics, or pairs of them), loss, kl (nats a token from the start), held_reward, held_untrained, held_difference
    with held_low and held_high (95%, paired bootstrap over the held passages), kept (the round whose adapter is kept so
    far; 0: the start), stopped (why the training ends with this round, or None), seconds. Where the target was warmed
    up again, the rewards in all rows are by the newest one; `kept` and `stopped` were decided by that of their time.
    """
    with quiet():
        return _Rounds(task).train(learn)


class _Rounds:
    def __init__(self, task: PolicyTask) -> None:
        self.task = task
        self.config = task.config
        self.file = RubricFile(task.folder / RUBRICS, self.config.group_size)
        # A row is written when its round has ended.
        self.history = task.history(keep=lambda row: True)
        chosen = held_ids(self.config, [passage.id for passage in task.passages], task.seed)
        self.held = [passage for passage in task.passages if passage.id in chosen]
        self.passages = [passage for passage in task.passages if passage.id not in chosen]
        model, self.tokenizer = task.load_model()
        self.model = task.with_lora(model)
        self.taught = taught_rubrics(task, self.tokenizer, chosen)
        self.start = weights_of(self.model)
        self.progress = len(self.history.rows) * (self.config.steps + 1)

    def train(self, learn: Learn) -> Path:
        """All rounds; keeps the adapter with the highest reward on the held passages."""
        best, stopped = 0, None
        self._held_rewards(0)
        self._tick()
        for number in range(1, self.config.rounds + 1):
            if number > len(self.history.rows):
                self.history.add(self._round(number, best, learn))
            row = self.history.rows[number - 1]
            # Rows of earlier versions do not say what was decided.
            decided = row if "kept" in row else self._decided(number, best, row["trained_on"])
            best, stopped = decided["kept"], decided["stopped"]
            if stopped is not None:
                break
            if best == number < self.config.rounds:
                self._warm_up_again(number)
        put_weights(self.model, self._weights(best))
        kept = self.history.rows[best - 1] if best else {"kl": 0.0, "held_difference": 0.0}
        self.task.conclude(
            kept_round=best,
            stopped=stopped,
            kl_per_token=kept["kl"],
            **{name: kept.get(name) for name in ("held_difference", "held_low", "held_high")},
            held_passages=len(self.held),
        )
        return self.task.save(self.model)

    def _round(self, number: int, best: int, learn: Learn) -> dict[str, Any]:
        began = time.monotonic()
        put_weights(self.model, self._weights(number - 1))
        row = {"step": number, **self._draw(number)}
        put_weights(self.model, self.start)
        judged = by_passage([*self.taught, *(rubric for rubric in self.file.all() if not rubric.held)])
        with turn(self.model.device), self.task.reward.options.meter.at_work(_RUBRIC_MODEL):
            trained = learn(self.task, self.model, self.tokenizer, list(judged.values()))
        row |= {"trained_on": trained.examples, "loss": trained.loss}
        if trained.examples:
            self._keep_weights(number)
            row |= self._measure(number)
        row |= self._decided(number, best, trained.examples)
        self._tick()
        return {**row, "seconds": round(time.monotonic() - began, 3)}

    def _decided(self, number: int, best: int, trained_on: int) -> dict[str, Any]:
        """Whose adapter is kept so far, and why the training ends with this round; None: it goes on."""
        if trained_on == 0:
            unseen = number < self.config.rounds and number * self._a_round < len(self.passages)
            nothing = None if unseen else f"round {number} had nothing to train on: {self._nothing_in()}"
            return {"kept": best, "stopped": nothing}
        gain = compared(self._held_rewards(number), self._held_rewards(best))
        better = not self.held or gain.mean > 0
        ended = self.held and gain.mean <= gain.error
        return {
            "kept": number if better else best,
            "stopped": end_of(gain, number, best, better=better) if ended else None,
        }

    def _warm_up_again(self, number: int) -> None:
        """Warms the target up on pairs of the policy of this round, and has it judge all rubrics so far."""
        renewal = self.task.renewal
        if renewal is None or self.file.warm_up > number:
            return
        requests = None
        if not renewal.has(number):
            put_weights(self.model, self._weights(number))
            blanks = renewal.blanks
            rows = [self.task.row(self.tokenizer, blank.passage, blank.seed, blank.kind) for blank in blanks]
            seeds = [derive_seed(self.task.seed, "sample", "warm_up", number, blank.seed) for blank in blanks]
            groups = self.task.sample_all(self.model, self.tokenizer, rows, seeds, count=1)
            requests = self.task.requests(rows, [rubric.text for (rubric,) in groups])
        reward = renewal.reward(number, requests)
        if reward is None:
            return
        self.task.reward = reward
        lessons = [self._lesson(rubric) for rubric in self.taught]
        self.taught = self._judged_again(self.taught, lessons, number)
        if self.file.warm_up < number:
            sampled = self.file.all()
            places = [(each.round, each.held, each.group, each.draw) for each in sampled]
            asked = self.task.requests(
                [self._row(place) for place in places], [each.text for each in sampled], noted=False
            )
            self.file.judged_again(self._judged_again(sampled, asked, number))
        self.history.replace([{**row, **self._figures(row)} for row in self.history.rows])

    def _judged_again(
        self, rubrics: Sequence[JudgedRubric], requests: Sequence[RubricRequest], warm_up: int
    ) -> list[JudgedRubric]:
        """The rubrics with the rewards that they earn now; their pairs are known."""
        return [
            replace(rubric, **_verdict(verdict), warm_up=warm_up)
            for rubric, verdict in zip(rubrics, self.task.judge_again(requests), strict=True)
        ]

    def _lesson(self, rubric: JudgedRubric) -> RubricRequest:
        """What was asked for when a rubric of somebody else was judged."""
        from optimsyn.reward.drafting import RubricRequest

        lesson = self.task.taught[rubric.group]
        return RubricRequest(
            passage=next(passage for passage in self.passages if passage.id == lesson.passage_id),
            kind=lesson.kind,
            rubric=lesson.rubric,
            guiding_text=lesson.guiding_text,
            rubric_model=lesson.rubric_model,
            seed=lesson.seed,
            variant=self.task.reward.source,
        )

    def _figures(self, row: dict[str, Any]) -> dict[str, Any]:
        """The rewards of a round by the target of now, for its row."""
        held = self._held_figures(row["step"]) if self.held and row["trained_on"] else {}
        return {**self._rewards(row["step"]), **held}

    def _nothing_in(self) -> str:
        """Why no rubric so far can be learned from."""
        rows = [*self.taught, *(row for row in self.file.all() if not row.held)]
        if not any(row.finished for row in rows):
            return "every rubric was cut at its longest; raise optimizers.policy.max_tokens"
        if all(row.reward is None for row in rows if row.finished):
            return "no pair of a whole rubric could be judged"
        if not any(row.valid for row in rows if row.finished):
            return "no pair of a whole rubric was valid"
        return "no rubric was better than others of its passage"

    def _measure(self, number: int) -> dict[str, Any]:
        """How far the policy is from its start, and what it earns on the held passages."""
        if not self.held:
            return {"kl": kl_on_fresh_rubrics(self.task, self.model, self.tokenizer, self.start)}
        held = self._held_figures(number)  # samples them
        sampled = [rows[0] for group in range(len(self.held)) if (rows := self.file.group((number, True, group, 0)))]
        kl = kl_per_token(self.model, self.start, [(row.prompt, row.completion) for row in sampled])
        return {"kl": kl, **held}

    def _held_figures(self, number: int) -> dict[str, Any]:
        """What the policy of a round earns on the held passages, beside the untrained one."""
        now, untrained = self._held_rewards(number), self._held_rewards(0)
        gain = compared(now, untrained)
        return {
            "held_reward": fmean(now.values()) if now else None,
            "held_untrained": fmean(untrained.values()) if untrained else None,
            "held_difference": gain.mean,
            "held_low": gain.low,
            "held_high": gain.high,
        }

    def _draw(self, number: int) -> dict[str, Any]:
        """Samples and judges the rubrics of a round, with groups that tell nothing drawn twice; the numbers of them."""
        a_step = min(self.config.passages_per_step, len(self.passages))
        total, again, silent = self.config.steps * a_step, 0, 0
        for first in range(0, total, at_once := self._at_once(a_step)):
            groups = range(first, min(first + at_once, total))
            drawn = self._groups([(number, False, group, 0) for group in groups])
            mute = [group for group in groups if not has_signal(drawn[group - first])]
            second = self._groups([(number, False, group, 1) for group in mute])
            again += len(mute)
            silent += sum(
                not has_signal([*drawn[group - first], *rows]) for group, rows in zip(mute, second, strict=True)
            )
            self._tick(len(groups) // a_step)
        rows = [row for row in self.file.all() if row.round == number and not row.held]
        return {
            **self._rewards(number),
            "completion_length": fmean(len(row.completion) for row in rows),
            "unfinished": fmean(not row.finished for row in rows),
            "redrawn": again,
            "groups_without_signal": silent / total,
        }

    def _rewards(self, number: int) -> dict[str, Any]:
        """Rewards of the rubrics that a round trained on new."""
        judged = [
            (row.reward, row.valid)
            for row in self.file.all()
            if row.round == number and not row.held and row.reward is not None
        ]
        rewards = [reward for reward, _ in judged]
        return {
            "reward": fmean(rewards) if rewards else None,
            "reward_std": pstdev(rewards) if rewards else None,
            "valid": fmean(valid for _, valid in judged) if judged else None,
        }

    def _held_rewards(self, number: int) -> dict[str, float]:
        """The mean reward on each held passage of the policy after a round; the model has its weights if it is new."""
        places = [(number, True, group, 0) for group in range(len(self.held))]
        at_once = self._at_once(self.config.passages_per_step)
        drawn = [
            rows for first in range(0, len(places), at_once) for rows in self._groups(places[first : first + at_once])
        ]
        by_group = (
            (rows[0].passage_id, [row.reward for row in rows if row.reward is not None]) for rows in drawn if rows
        )
        return {passage: fmean(rewards) for passage, rewards in by_group if rewards}

    def _groups(self, places: Sequence[Place]) -> list[list[JudgedRubric]]:
        """The groups at these places; those that are not in the file yet are sampled, and judged at once."""
        missing = [place for place in places if self.file.group(place) is None]
        rows = [self._row(place) for place in missing]
        seeds = [derive_seed(self.task.seed, "sample", *self._seeded(place)) for place in missing]
        groups = self.task.sample_all(self.model, self.tokenizer, rows, seeds)
        asked, texts, sampled = [], [], []
        for place, row in zip(missing, rows, strict=True):
            with self.task.reward.options.meter.at_work(_RUBRIC_MODEL):
                rubrics = next(groups)
            asked += [row] * len(rubrics)
            texts += [rubric.text for rubric in rubrics]
            sampled += [(place, rubric) for rubric in rubrics]
            self.task.trl_reward.write_ahead([row] * len(rubrics), [rubric.text for rubric in rubrics])
        groups.close()
        if asked:
            verdicts = self.task.judgements(asked, texts)
            self.file.add(
                [
                    JudgedRubric(
                        *place,
                        passage_id=verdict.passage_id,
                        seed=verdict.seed,
                        text=rubric.text,
                        prompt=rubric.prompt,
                        completion=rubric.completion,
                        finished=rubric.finished,
                        warm_up=self.file.warm_up,
                        **_verdict(verdict),
                    )
                    for (place, rubric), verdict in zip(sampled, verdicts, strict=True)
                ]
            )
        return [self.file.group(place) or [] for place in places]

    def _row(self, place: Place) -> dict[str, Any]:
        """A group's row."""
        passage = self._passage(place)
        # One form a passage, since rubrics are compared across rounds and the form is in the prompt.
        kind = self.task.shape.kind_for(derive_seed(self.task.seed, "kind", passage.id))
        return self.task.row(self.tokenizer, passage, derive_seed(self.task.seed, *self._seeded(place)), kind)

    def _seeded(self, place: Place) -> tuple[Any, ...]:
        """What a group's seeds are derived from."""
        number, held, group, draw = place
        passage = self._passage(place)
        # Held passages have the same seeds in every round, so that policies differ in their weights alone.
        return ("held", passage.id) if held else ("rounds", number, group, draw, passage.id)

    def _passage(self, place: Place) -> Passage:
        """The passage of a group: they are used in their order, each round going on where the last one ended."""
        number, held, group, _ = place
        if held:
            return self.held[group]
        return self.passages[((number - 1) * self._a_round + group) % len(self.passages)]

    @property
    def _a_round(self) -> int:
        """Groups of a round, each with a passage of its own while there are enough."""
        return self.config.steps * min(self.config.passages_per_step, len(self.passages))

    def _weights(self, number: int) -> Weights:
        """The adapter's weights after a round, or the last one before it that trained; 0: at the start."""
        from safetensors.torch import load_file

        while number and not self._path(number).is_file():
            number -= 1
        return self.start if number == 0 else load_file(self._path(number))

    def _keep_weights(self, number: int) -> None:
        from safetensors.torch import save_file

        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(dict(weights_of(self.model)), partial)
        partial.replace(path)

    def _path(self, number: int) -> Path:
        return self.task.checkpoints / f"round-{number}.safetensors"

    def _at_once(self, a_step: int) -> int:
        """Groups of whole steps that are sampled and judged together: two batches, one written while one is sampled."""
        most = _BATCHES * rows_at_once(self.model.device)
        return max(1, most // self.config.group_size // a_step) * a_step

    def _tick(self, steps: int = 1) -> None:
        self.progress += steps
        self.task.progress(self.progress, self.config.rounds * (self.config.steps + 1) + 1)


def _verdict(judgement: Judgement) -> dict[str, Any]:
    return {"valid": judgement.valid, "reward": None if judgement.unjudged is not None else judgement.reward}
