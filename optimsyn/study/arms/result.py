"""`study.json`: everything that a study found, for its page and for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from optimsyn.study.arms import power
from optimsyn.study.arms.effects import Differences, Effect, effect, holm, spread
from optimsyn.study.arms.outcomes import CellState, Outcome, differences
from optimsyn.study.arms.study_file import HIGHER_IS_BETTER, INFLUENCE, METRICS, Contrast, StudyFile

_SEEDS = (3, 5, 10)
_EXAMPLES = 2
# The arm whose rubrics show what the rubric model asked for before its training, the best first.
BEFORE, AFTER = ("untrained_policy", "static"), ("both", "policy")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Estimate(_Part):
    """A mean difference, left minus right."""

    value: float = Field(description="The difference; each seed counts the same, in the pooled one each domain too.")
    low: float | None = Field(description="Lower end of the interval; None with one seed.")
    high: float | None = Field(description="Upper end.")
    p: float | None = Field(description="Two-sided, of no difference, not adjusted.")
    df: float | None = Field(description="Degrees of freedom of interval and test (Satterthwaite).")
    bootstrap_low: float | None = Field(description="Two-way percentile bootstrap, for comparison.")
    bootstrap_high: float | None = Field(description="Its upper end.")
    seeds: int = Field(description="Seeds of the domain; of the pooled one, all runs that enter.")
    groups: int = Field(description="Groups of questions.")
    questions: int = Field(description="Test questions.")
    better: bool | None = Field(description="Whether the left side is better; None if equal.")


class ContrastResult(_Part):
    """A contrast on the study's metric, and beside it on the others."""

    contrast: str
    left: str
    right: str
    registered: bool = Field(description="Named before the study started; others are exploratory, without Holm.")
    pooled: Estimate | None = Field(description="Over domains with equal weight; None without data.")
    holm_p: float | None = Field(description="p of the pooled difference, adjusted over the registered contrasts.")
    domains: dict[str, Estimate] = Field(description="By domain.")
    better_in: int = Field(description="Domains in which the left side is better.")
    others: dict[str, Estimate] = Field(description="Pooled, on the other metrics; not adjusted.")


class Power(_Part):
    """Which difference seeds can find, for one contrast, from the spread in this study (or a pilot)."""

    contrast: str
    sd_seed: dict[str, float] = Field(description="By domain: SD of the effect between seeds.")
    sd_group: dict[str, float] = Field(description="By domain: SD between groups of questions.")
    sd_rest: dict[str, float] = Field(description="By domain: SD of one group in one seed beyond both.")
    groups: dict[str, float] = Field(description="By domain: groups of questions, in effect.")
    alpha: float
    detectable: dict[int, float] = Field(description="Seeds a domain to the pooled difference found with power .8.")
    smallest: float | None = Field(None, description="The study's smallest difference that matters.")
    seeds_needed: int | None = Field(None, description="Seeds a domain that find it; None: 200 do not, or none named.")


class CellResult(_Part):
    """One run."""

    domain: str
    control: str
    seed: int
    folder: str
    state: str = Field(description="waiting, finished, unfinished, failed, refused, interrupted or unreadable.")
    reason: str = ""
    seconds: float = Field(description="Time of its finished stages.")


class Mean(_Part):
    """Means of an arm, over questions and then seeds."""

    domain: str
    control: str
    arm: str
    seeds: int
    metrics: dict[str, float]


class Curve(_Part):
    """The reward during one optimisation."""

    domain: str
    control: str
    seed: int
    what: Literal["policy", "prompt"]
    steps: list[float] = Field(description="Training steps, or pairs judged by the prompt search.")
    rewards: list[float]


class Check(_Part):
    """Did the policy of a run move, and did the reward mean something?"""

    domain: str
    control: str
    seed: int
    kl: float | None = Field(description="Divergence from the untrained policy as it was kept, in nats a token.")
    held: dict[str, float] = Field(description="What the training recorded on held passages (fields `held…`).")
    reward_look: str | None = Field(description="Verdict of the reward's own look.")


class RubricExample(_Part):
    """Rubrics for one passage, before and after the policy's training."""

    domain: str
    control: str
    seed: int
    passage: str
    before_arm: str
    before: dict[str, str]
    after_arm: str
    after: dict[str, str]


class StudyResult(_Part):
    """The content of `study.json`."""

    format: int = 1
    name: str
    question: str
    fingerprint: str = Field(description="Of the design as it stood at the start.")
    started: str
    written: str
    versions: dict[str, str]
    design: dict[str, Any] = Field(description="The study file as it stood at the start.")
    changed: list[str] = Field(description="What was changed after the start.")
    metric: str
    alpha: float
    cells: list[CellResult]
    contrasts: list[ContrastResult]
    means: list[Mean]
    power: list[Power]
    curves: list[Curve]
    checks: list[Check]
    rubrics: list[RubricExample]
    notes: list[str]


def contrast_results(
    outcomes: Sequence[Outcome], contrasts: Mapping[Contrast, bool], metric: str, alpha: float
) -> list[ContrastResult]:
    """The contrasts on a metric; the values of `contrasts` say which are registered."""
    results = []
    for contrast, registered in contrasts.items():
        data = differences(outcomes, contrast, metric)
        domains = {domain: _estimate([each], metric, alpha) for domain, each in data.items()}
        others = {
            name: _estimate(list(found.values()), name, alpha)
            for name in METRICS
            if name != metric and (found := differences(outcomes, contrast, name))
        }
        results.append(
            ContrastResult(
                contrast=str(contrast),
                left=str(contrast.left),
                right=str(contrast.right),
                registered=registered,
                pooled=_estimate(list(data.values()), metric, alpha) if data else None,
                holm_p=None,
                domains=domains,
                better_in=sum(each.better is True for each in domains.values()),
                others=others,
            )
        )
    # A contrast without a p yet counts in the number of tests, as the least surprising one.
    family = {
        each.contrast: 1.0 if each.pooled is None or each.pooled.p is None else each.pooled.p
        for each in results
        if each.registered
    }
    adjusted = holm(family)
    for each in results:
        if each.registered and each.pooled is not None and each.pooled.p is not None:
            each.holm_p = adjusted[each.contrast]
    return results


def power_results(outcomes: Sequence[Outcome], contrasts: Sequence[Contrast], study: StudyFile) -> list[Power]:
    """The power of each contrast, where a domain has two seeds or more."""
    results = []
    for contrast in contrasts:
        spreads = {d: spread(each) for d, each in differences(outcomes, contrast, study.metric).items()}
        parts = {
            domain: power.components(each) for domain, each in spreads.items() if each.seeds > 1 and each.groups > 1
        }
        if parts:
            results.append(power_from(str(contrast), parts, study))
    return results


def power_from(contrast: str, parts: Mapping[str, power.Components], study: StudyFile) -> Power:
    """The power of a contrast from the spread of each domain."""
    every, alpha = list(parts.values()), study.alpha
    seeds = sorted({*_SEEDS, max(2, len(study.seeds))})
    return Power(
        contrast=contrast,
        sd_seed={domain: each.seed for domain, each in parts.items()},
        sd_group={domain: each.group for domain, each in parts.items()},
        sd_rest={domain: each.rest for domain, each in parts.items()},
        groups={domain: each.groups for domain, each in parts.items()},
        alpha=alpha,
        detectable={number: power.detectable_with(every, number, alpha=alpha) for number in seeds},
        smallest=study.smallest,
        seeds_needed=None if study.smallest is None else power.seeds_for(study.smallest, every, alpha=alpha),
    )


def means_of(outcomes: Sequence[Outcome], arms: Sequence[str]) -> list[Mean]:
    """The means of every arm in every domain under every control."""
    by_place: dict[tuple[str, str], list[Outcome]] = {}
    for each in outcomes:
        by_place.setdefault((each.domain, each.control), []).append(each)
    means = []
    for (domain, control), seeds in by_place.items():
        for arm in arms:
            metrics = {}
            for metric in METRICS:
                of_seeds = [list(each.values[arm][metric].values()) for each in seeds if each.values[arm][metric]]
                if of_seeds:
                    metrics[metric] = float(np.mean([np.mean(values) for values in of_seeds]))
            means.append(Mean(domain=domain, control=control, arm=arm, seeds=len(seeds), metrics=metrics))
    return means


def curves_of(outcomes: Sequence[Outcome]) -> list[Curve]:
    """The learning curves of every run."""
    curves = []
    for each in outcomes:
        for what, rows, x, y in (("policy", each.policy, "step", "reward"), ("prompt", each.prompt, "judged", "score")):
            points = [
                (float(row.get(x, place)), float(row[y]))
                for place, row in enumerate(rows)
                if isinstance(row.get(y), int | float)
            ]
            if points:
                steps, rewards = map(list, zip(*points, strict=True))
                where = {"domain": each.domain, "control": each.control, "seed": each.seed}
                curves.append(Curve.model_validate({**where, "what": what, "steps": steps, "rewards": rewards}))
    return curves


def checks_of(outcomes: Sequence[Outcome]) -> list[Check]:
    """The manipulation checks of every run."""
    checks = []
    for each in outcomes:
        rows = [*each.policy, {"kl": each.trained.get("kl_per_token"), **each.trained}]
        moved = [row["kl"] for row in rows if isinstance(row.get("kl"), int | float)]
        held = {
            name: float(value)
            for row in rows
            for name, value in row.items()
            if name.startswith("held") and isinstance(value, int | float)
        }
        if moved or held or each.look is not None:
            kl = float(moved[-1]) if moved else None
            checks.append(
                Check(domain=each.domain, control=each.control, seed=each.seed, kl=kl, held=held, reward_look=each.look)
            )
    return checks


def rubric_examples(outcomes: Sequence[Outcome]) -> list[RubricExample]:
    """A few passages of each domain's first run under influence with the rubrics of before and after."""
    examples, domains = [], set()
    for each in sorted(outcomes, key=lambda outcome: (outcome.control != INFLUENCE, outcome.seed)):
        before = next((arm for arm in BEFORE if each.rubrics.get(arm)), None)
        after = next((arm for arm in AFTER if each.rubrics.get(arm)), None)
        if before is None or after is None or each.domain in domains:
            continue
        domains.add(each.domain)
        one, other = each.rubrics[before], each.rubrics[after]
        examples += [
            RubricExample(
                domain=each.domain,
                control=each.control,
                seed=each.seed,
                passage=passage,
                before_arm=before,
                before=one[passage],
                after_arm=after,
                after=other[passage],
            )
            for passage in [name for name in one if name in other][:_EXAMPLES]
        ]
    return examples


def cell_results(states: Sequence[CellState]) -> list[CellResult]:
    """The runs and how far they are."""
    return [
        CellResult(
            domain=each.cell.domain,
            control=each.cell.control,
            seed=each.cell.seed,
            folder=each.folder.name,
            state=each.state,
            reason=each.reason,
            seconds=round(each.seconds, 2),
        )
        for each in states
    ]


def _estimate(data: Sequence[Differences], metric: str, alpha: float) -> Estimate:
    found: Effect = effect(data, confidence=1 - alpha)
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    seeds, groups = (sum(len({*getattr(each, name)}) for each in data) for name in ("seeds", "groups"))
    return Estimate(
        value=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        df=found.df,
        bootstrap_low=found.bootstrap_low,
        bootstrap_high=found.bootstrap_high,
        seeds=seeds,
        groups=groups,
        questions=round(sum(len(each.values) / len({*each.seeds}) for each in data)),
        better=None if found.value == 0 else found.value * sign > 0,
    )
