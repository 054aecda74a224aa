"""A warm-up that searches its learning rate and its number of steps; `optimsyn.target.warm_up.curve` has the rules.

Rates are tried one after another from the same start, each for the few steps between two looks. The warm-up then
restarts with the best one, so that its checkpoints equal those of a plain warm-up with these settings. It continues
from look to look until the form has settled, or until pairs that it does not train on get worse.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_text
from optimsyn.base.identity import Identity, digest_of
from optimsyn.data.splits import evenly
from optimsyn.target.encoding import Encoded
from optimsyn.target.fingerprint import adapter_digest
from optimsyn.target.warm_up.checkpoints import Checkpoint, DivergedError, Training, checkpoint_steps, epochs, train
from optimsyn.target.warm_up.curve import (
    Look,
    Losses,
    Search,
    Stopped,
    TriedRate,
    WarmUpCurve,
    choose_rate,
    overfits,
    settled,
    tried_rates,
)
from optimsyn.target.warm_up.measure import measure

if TYPE_CHECKING:
    from optimsyn.data.records import Pair, Question, Sample
    from optimsyn.target.warm_up.protocol import Trainee

RECORD = "warm_up.json"
"""Written last: a folder without it holds an interrupted warm-up, which is redone."""
CURVE = "curve.json"

# Defaults without validation questions: the steps and the rate of a short fine-tuning.
_STEPS, _LR = 12, 2e-4
# How often the lowest rate is halved when every rate raised the loss.
_HALVINGS = 3


@dataclass(frozen=True)
class Plan:
    """The settings of a warm-up.

    Attributes:
        steps: Optimiser steps; None searches them.
        lr: Learning rate; None searches it.
        checkpoints: How many checkpoints, spread over the steps; the last step always has one.
        seed: Of the order of samples and of dropout.
        batch_tokens: Tokens per forward pass; does not change the result.
    """

    steps: int | None
    lr: float | None
    search: Search
    batch_size: int
    checkpoints: int
    max_grad_norm: float
    seed: int
    batch_tokens: int

    @property
    def looks(self) -> bool:
        """Whether there is anything to search."""
        return self.steps is None or self.lr is None


T = TypeVar("T")


@dataclass(frozen=True)
class WarmUpData(Generic[T]):
    """The data of a warm-up."""

    pairs: Sequence[T]
    questions: Sequence[T] = ()
    unseen: Sequence[T] = ()


@dataclass(frozen=True)
class Bench:
    """The operations that the search needs.

    Attributes:
        begin: Resets the model to its start and returns a training at this rate.
        look: Measures the current model, without gradients or dropout.
    """

    begin: Callable[[float], Training]
    look: Callable[[], Losses]
    taken: Callable[[], None] = lambda: None


def warm_up(
    target: Trainee,
    data: WarmUpData[Pair | Question | Sample],
    plan: Plan,
    folder: Path | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[list[Checkpoint], WarmUpCurve | None]:
    """Implements `Target.warm_up`; leaves the model at the last checkpoint."""
    if plan.looks and not data.questions:
        plan = replace(plan, steps=_STEPS if plan.steps is None else plan.steps, lr=_LR if plan.lr is None else plan.lr)
    if plan.looks:
        pairs, unseen = (data.pairs, data.unseen) if data.unseen else plan.search.split(data.pairs)
        data = WarmUpData(pairs, evenly(data.questions, plan.search.most_questions), unseen)
        looks = plan.search.fewest_looks
        if plan.steps is None and plan.checkpoints > looks:
            raise ModelError(
                f"{plan.checkpoints} warm-up checkpoints cannot be spread over the {looks} looks of "
                f"the shortest warm-up ({plan.search.least_steps} steps); use fewer of them, or lower warm_up.every"
            )
    else:
        data = WarmUpData(data.pairs)
    encoded = WarmUpData(
        *([target.encode(item) for item in part] for part in (data.pairs, data.questions, data.unseen))
    )
    record = _fingerprint(target, plan, encoded)
    if folder is not None and record.same_as(_recorded(folder), "fingerprint"):
        return target.add_checkpoints_from(folder), target.curve
    target.model.train()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            bench = _bench(target, plan, encoded, report)
            kept, curve = run(bench, plan)
    finally:
        target.model.eval()
    curve = replace(
        curve,
        trained_on=len(encoded.pairs),
        held_out=len(encoded.unseen),
        questions=len(encoded.questions),
    )
    # The warm-up may have gone on past its last checkpoint.
    target.load_checkpoint(kept[-1])
    if folder is not None:
        (folder / RECORD).unlink(missing_ok=True)
        for leftover in folder.glob(".step-*"):
            # Left by a process that was killed while writing.
            shutil.rmtree(leftover)
        for item in kept:
            item.save(folder / f"step-{item.step:06d}")
        curve.save(folder / CURVE)
        write_text(folder / RECORD, json.dumps({**record.saved("fingerprint"), "steps": [c.step for c in kept]}))
    return kept, curve


def run(bench: Bench, plan: Plan) -> tuple[list[Checkpoint], WarmUpCurve]:
    """Searches what the plan leaves open and trains; the model may be past the last checkpoint.

    Raises:
        ModelError: Every rate, or the given one, leads to a loss that is not finite.
    """
    search = plan.search
    start: Losses | None = None
    if plan.looks:
        start = bench.look()
        if not start.finite:
            raise DivergedError(
                "warm-up: a loss is not finite before the first step; load the target in float32 or bfloat16 "
                "(models.target.dtype)"
            )
    if plan.lr is None:
        assert start is not None
        rate = _find_rate(bench, search, start, min(search.every, plan.steps or search.max_steps))
    else:
        rate = _Rate(plan.lr, "given")
    if plan.steps is None:
        assert start is not None
        return _by_evidence(bench, plan, start, rate)
    training = bench.begin(rate.lr)
    kept = train(training, steps=plan.steps, checkpoints=plan.checkpoints, report=lambda *_: bench.taken())
    losses = tuple(training.losses)
    return kept, WarmUpCurve(rate.lr, plan.steps, "given", "the number was given", rate.why, losses, rates=rate.tried)


@dataclass(frozen=True)
class _Rate:
    """The learning rate of a warm-up.

    Attributes:
        after: The losses after the steps for which it was tried; None where it was given.
    """

    lr: float
    why: str
    after: Losses | None = None
    tried: tuple[TriedRate, ...] = ()


def _find_rate(bench: Bench, search: Search, start: Losses, steps: int) -> _Rate:
    """Tries the candidates and takes the best one."""
    tried: dict[float, Losses | None] = {}
    training: dict[float, Sequence[float]] = {}
    waiting = [search.around * factor for factor in search.factors]
    most = len(waiting) + _HALVINGS
    while True:
        for lr in waiting:
            tried[lr], training[lr] = _try(bench, lr, steps)
        best, dropped = choose_rate(start, tried, search.around)
        if best is not None:
            why = (
                f"lowest loss after {steps} steps, or within its noise and nearer to fine-tuning's {search.around:.2g}"
            )
            break
        if len(tried) >= most:
            finite = [lr for lr, losses in tried.items() if losses is not None and losses.finite]
            if not finite:
                raise DivergedError(
                    f"warm-up: at every learning rate from {min(tried):.2g} to {max(tried):.2g} a loss was not finite "
                    f"within {steps} steps; give a lower warm_up.lr, or load the target in float32"
                )
            best, why = min(finite), f"every rate made things worse within {steps} steps, this one least"
            break
        waiting = [min(tried) / 2]
    return _Rate(best, why, tried[best], tried_rates(tried, training, steps, dropped))


def _try(bench: Bench, lr: float, steps: int) -> tuple[Losses | None, Sequence[float]]:
    training = bench.begin(lr)
    try:
        for _ in range(steps):
            training.step()
            bench.taken()
    except DivergedError:
        return None, ()
    return bench.look(), training.losses


def _by_evidence(bench: Bench, plan: Plan, start: Losses, rate: _Rate) -> tuple[list[Checkpoint], WarmUpCurve]:
    """Trains from look to look until the form has settled or the warm-up overfits."""
    search, training = plan.search, bench.begin(rate.lr)
    history, looks = [start], [Look.of(0, start, ())]
    kept: list[Checkpoint] = []
    stopped: Stopped = "most steps"
    why = f"after {search.max_steps} steps the form had not settled, and nothing got worse"
    while training.steps < search.max_steps:
        before = training.steps
        while training.steps < search.next_look(before):
            training.step()
            bench.taken()
        # The trial of this rate took the same steps.
        losses = rate.after if rate.after is not None and not before else bench.look()
        if not losses.finite:
            raise DivergedError(f"warm-up step {training.steps}: a held-out loss is not finite; lower warm_up.lr")
        history.append(losses)
        looks.append(Look.of(training.steps, losses, training.losses[before:]))
        if plan.checkpoints == 1:
            # Only the last two can become the checkpoint.
            del kept[:-1]
        kept.append(training.checkpoint())
        if training.steps < search.least_steps:
            continue
        if worse := overfits(history):
            stopped, why = "overfits", worse
            if training.steps > search.least_steps:
                kept.pop()
            break
        if still := settled(history):
            stopped, why = "settled", still
            break
    chosen = _spread_over(kept, plan.checkpoints)
    return chosen, WarmUpCurve(
        rate.lr,
        chosen[-1].step,
        stopped,
        why,
        rate.why,
        tuple(training.losses[: chosen[-1].step]),
        tuple(looks),
        rate.tried,
    )


def _spread_over(kept: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """Evenly spread checkpoints with the last one; each takes the losses of the omitted ones before it."""
    spread, begun = [], 0
    for place in checkpoint_steps(len(kept), count):
        losses = tuple(loss for item in kept[begun:place] for loss in item.losses)
        spread.append(replace(kept[place - 1], losses=losses))
        begun = place
    return spread


def _bench(
    target: Trainee,
    plan: Plan,
    encoded: WarmUpData[Encoded],
    report: Callable[[int, int], None] | None,
) -> Bench:
    start = {name: p.detach().cpu().clone() for name, p in target.parameters.items()} if plan.looks else {}
    tried = len(plan.search.factors) * plan.search.every if plan.lr is None else 0
    most, done = tried + (plan.steps or plan.search.max_steps), 0

    def taken() -> None:
        nonlocal done
        done += 1
        if report is not None:
            report(done, max(most, done))

    def backward(batch: list[Encoded]) -> float:
        total = 0.0
        for part in target.batches(batch, plan.batch_tokens):
            loss = target.losses(part).sum() / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def begin(lr: float) -> Training:
        with torch.no_grad():
            for name, value in start.items():
                target.parameters[name].copy_(value)
        torch.manual_seed(plan.seed)
        return Training(
            encoded.pairs,
            target.parameters,
            backward,
            epochs(len(encoded.pairs), plan.batch_size, plan.seed),
            lr=lr,
            max_grad_norm=plan.max_grad_norm,
        )

    def look() -> Losses:
        target.model.eval()
        try:
            return measure(target, encoded.questions, encoded.unseen, plan.batch_tokens)
        finally:
            target.model.train()

    return Bench(begin, look, taken)


def _fingerprint(target: Trainee, plan: Plan, encoded: WarmUpData[Encoded]) -> Identity:
    settings = [plan.steps, plan.batch_size, plan.lr, plan.checkpoints, plan.max_grad_norm, plan.seed]
    inputs: dict[str, object] = {
        "the target": target.fingerprint(),
        "the start of its trained part": adapter_digest(target.model, target.parameters.values()),
        "the warm-up's settings": settings,
        "the pairs": _ids(encoded.pairs),
    }
    if plan.looks:
        inputs |= {
            "the search": asdict(plan.search),
            "the questions": _ids(encoded.questions),
            "the held-out pairs": _ids(encoded.unseen),
        }
    return Identity.of(inputs, lambda facts: digest_of(facts, 64, sort_keys=False))


def _ids(encoded: Sequence[Encoded]) -> list[list[object]]:
    return [[item.id, item.input_ids, item.labels] for item in encoded]


def _recorded(folder: Path) -> dict[str, object]:
    """The record of the finished warm-up in `folder`; empty where there is none."""
    file = folder / RECORD
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
