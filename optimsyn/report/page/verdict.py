"""The outcome of a run, in sentences that claim no more than its numbers show.

A run has one seed, so no sentence calls anything better: it says what is higher or lower on this seed, the worst end as
plainly as the best one, and each comparison carries its limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import LOWER_IS_BETTER, METRIC_LABELS, control_sentence, variant_label
from optimsyn.base.terminal.table import fixed, number
from optimsyn.report.facts import RunFacts
from optimsyn.report.tables import interval
from optimsyn.runs.outcomes import RunState, commands, favourable, judgement
from optimsyn.runs.results.text_search import TextSearch
from optimsyn.training.intervals import UNTUNED, MetricRow

_FEW_QUESTIONS = 200


@dataclass(frozen=True)
class Failure:
    """Where (stage and cell) and why a run stopped, the cell's code and the executed notebook; "" where unknown."""

    place: str
    reason: str
    source: str
    notebook: str


@dataclass(frozen=True)
class Comparison:
    """What was compared, what this run shows about it, a metric a line, and the limit of that."""

    what: str
    shown: tuple[str, ...]
    limit: str


@dataclass(frozen=True)
class Verdict:
    """The top of a report; a tone is good, bad or open, and that of the whole may differ from that of the badge.

    A finished run may have made a target worse. `ends` names the variants at both ends of the first metric, as
    prominent as the headline. `cannot` is what no comparison shows.
    """

    badge: str
    badge_tone: str
    tone: str
    headline: str
    ends: str
    sentences: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    cannot: tuple[str, ...]
    failure: Failure | None
    commands: tuple[tuple[str, str], ...]


def verdict(facts: RunFacts) -> Verdict:
    """The verdict on a run in any state."""
    state = facts.state
    if state.kind == "finished":
        return Verdict(
            badge="finished",
            badge_tone="good",
            tone=_tone(facts),
            headline=_headline(facts),
            ends=_ends(facts),
            sentences=(*_one_seed(facts), *_on_the_reward(facts)),
            comparisons=tuple(_comparisons(facts)),
            cannot=_limits(facts),
            failure=None,
            commands=(),
        )
    typed = commands(facts.folder)
    going_on = [("Continue; what is finished is not repeated, and no reply is bought twice", typed["continue"])]
    if state.kind in ("failed", "interrupted"):
        going_on.append(("Or step on by hand in JupyterLab, where it stopped", typed["open"]))
    headline = {
        "failed": f"It failed in {state.place}.",
        "interrupted": f"It was interrupted in {state.place}."
        if not _was_killed(state)
        else f"It was killed in {state.place}; the same command continues.",
        "running": f"It was still running when this page was written: {state.place}.",
        "unfinished": f"It stopped before {state.waiting[0]}; what was done until then is finished.",
        "new": "No stage has run yet.",
    }[state.kind]
    tone = "bad" if state.kind == "failed" else "open"
    so_far = (
        f"{stage} has judged {plural(judged.pairs, 'pair')} so far, {judged.valid:,} of them valid."
        for stage, judged in facts.judged.items()
    )
    return Verdict(
        badge={"new": "not started"}.get(state.kind, state.kind),
        badge_tone=tone,
        tone=tone,
        headline=headline,
        ends="",
        sentences=(*_on_the_reward(facts), *so_far),
        comparisons=(),
        cannot=("What the pairs are worth: no target has been fine-tuned and evaluated on all of them yet.",),
        failure=_failure(facts, state),
        commands=() if state.kind == "running" else tuple(going_on),
    )


def _was_killed(state: RunState) -> bool:
    return state.record is not None and state.record.failure is not None and state.record.failure.kind == "Killed"


def _failure(facts: RunFacts, state: RunState) -> Failure | None:
    record = state.record
    if record is None or state.kind == "running":
        return None
    place, source, reason = state.place, "", record.error or "no reason was recorded"
    if record.failure is not None:
        source = record.failure.source or ""
        if record.failure.cell is not None:
            place += f", cell [{record.failure.cell}]"
        reason = f"{record.failure.kind}: {record.failure.reason}"
    notebook = f"notebooks/{state.stages.index(record.name) + 1:02d}_{record.name}.ipynb"
    return Failure(place, reason, source, notebook if (facts.folder / notebook).is_file() else "")


def _on_the_reward(facts: RunFacts) -> list[str]:
    """What a control rewards, and a warning if the run's reward is noise or doubtful."""
    look, source = facts.reward_look, facts.recipe.reward.source
    control = [control_sentence(source)] if facts.recipe.reward.is_control else []
    if look is None or look.verdict not in ("noise", "doubtful"):
        return control
    sentence = look.sentence
    if look.verdict == "noise" and facts.recipe.reward.on_noise == "warn":
        sentence += (
            " The recipe has reward.on_noise: warn, so the run went on; what was chosen by reward was chosen at random."
        )
    return [*control, sentence]


def _of(rows: Sequence[MetricRow], variant: str) -> list[MetricRow]:
    return [row for row in rows if row["variant"] == variant]


def _metric(row: MetricRow) -> str:
    return METRIC_LABELS.get(row["metric"], row["metric"].replace("_", " "))


def _change(row: MetricRow) -> str:
    """A paired difference with its interval, on one line: with non-breaking spaces."""
    return interval(row, difference=True, joint="\u00a0")


def _listed(rows: Iterable[MetricRow]) -> tuple[str, ...]:
    return tuple(f"{_metric(row)} {_change(row)}, {judgement(row)}" for row in rows)


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _pairs(facts: RunFacts) -> str:
    return "pairs" if facts.dataset_pairs is None else f"{facts.dataset_pairs:,} pair{'s'[: facts.dataset_pairs != 1]}"


def _tone(facts: RunFacts) -> str:
    """Good only if something moved the right way, nothing the wrong way, and nothing speaks against the reward."""
    sides = [favourable(row) for row in _of(facts.evaluation, facts.dataset_variant)]
    beside = [favourable(row) for row in _of(facts.against_no_rubric, facts.dataset_variant)]
    if False in sides:
        return "open" if True in sides else "bad"
    unsound = facts.reward_look is not None and facts.reward_look.verdict in ("noise", "doubtful")
    return "good" if True in sides and False not in beside and not unsound else "open"


def _headline(facts: RunFacts) -> str:
    """What fine-tuning on the dataset did to every metric: what got worse as plainly as what did not."""
    rows = [row for row in _of(facts.evaluation, facts.dataset_variant) if judgement(row)]
    if not rows:
        return "Every stage has finished, but there is no evaluation of the dataset."
    before = {row["metric"]: row["value"] for row in _of(facts.evaluation, UNTUNED)}
    moved = [row for row in rows if favourable(row) is not None]
    same = [row for row in rows if favourable(row) is None]
    names = _joined([_metric(row) for row in same]) if same else ""
    unchanged = f"no change of {names} that {_questions(same)} test questions show" if same else ""
    start = f"Fine-tuning on the dataset's {_pairs(facts)}"
    if not moved:
        return f"{start} made {unchanged}."
    verb = {"higher": "raised", "lower": "lowered"}
    told = [
        f"{verb[judgement(row)]} {_metric(row)} from {fixed(before[row['metric']], 2)} to {fixed(row['value'], 2)} "
        f"({_change(row)}, {plural(row['n'], 'test question')})"
        for row in moved
    ]
    return f"{start} {_joined(told)}{f'; it made {unchanged}' if unchanged else ''}."


def _questions(rows: Sequence[MetricRow]) -> str:
    low, high = min(row["n"] for row in rows), max(row["n"] for row in rows)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _ends(facts: RunFacts) -> str:
    """The variants with the best and the worst value of the first metric, in one sentence; "" without two."""
    rows = _first_metric(facts)
    values = [row["value"] for row in rows]
    if len(set(values)) < 2:
        return ""
    ends = [("lowest", min(values)), ("highest", max(values))]
    if rows[0]["metric"] not in LOWER_IS_BETTER:
        ends.reverse()
    told = []
    for end, value in ends:
        names = [_name(facts, row["variant"]) for row in rows if row["value"] == value]
        told.append(f"{end} with the pairs {_joined(names)}, {fixed(value, 2)}")
    plain = next((row["value"] for row in rows if row["variant"] == "no_rubric"), None)
    # So that an improvement is not credited to rubrics alone.
    beside = "" if plain is None or plain in (min(values), max(values)) else f"; without a rubric {fixed(plain, 2)}"
    return f"Of the {plural(len(rows), 'variant')}, {_metric(rows[0])} is {told[0]}, and {told[1]}{beside}."


def _first_metric(facts: RunFacts) -> list[MetricRow]:
    """The fine-tuned variants' rows of the first metric."""
    tuned = [row for row in facts.evaluation if row["variant"] != UNTUNED and judgement(row)]
    return [row for row in tuned if row["metric"] == tuned[0]["metric"]]


def _name(facts: RunFacts, variant: str) -> str:
    label = variant_label(variant)
    label = "without a rubric" if variant == "no_rubric" else f"of the {label}"
    return f"{label}, which is the dataset" if variant == facts.dataset_variant else label


def _one_seed(facts: RunFacts) -> list[str]:
    if not facts.evaluation:
        return []
    return [
        f"Changes are against the target as it came, with {facts.recipe.evaluation.confidence:.0%} intervals over test "
        f"questions. All is of one seed ({facts.recipe.seed_label}); one seed cannot show which is better."
    ]


def _comparisons(facts: RunFacts) -> Iterable[Comparison]:
    """Every comparison of a finished run with its one limit."""
    variant = facts.dataset_variant
    rows = [row for row in _of(facts.evaluation, variant) if judgement(row)]
    if rows:
        yield Comparison("The dataset against the target as it came", _listed(rows), _too_small(rows))
    if rows and variant != "no_rubric":
        against = [row for row in _of(facts.against_no_rubric, variant) if judgement(row)]
        shown = _listed(against) or ("not compared by question",)
        yield Comparison("The dataset against as many pairs without a rubric", shown, _of_rubrics(against))
    if _ends(facts):
        first = _first_metric(facts)
        values = [row["value"] for row in first]
        yield Comparison(
            "The variants with each other",
            (f"{_metric(first[0])} {fixed(min(values), 2)} to {fixed(max(values), 2)}",),
            f"The ends of {len(values)} were picked after the fact, which makes them look further apart; another seed "
            "may put others there.",
        )
    if facts.optimize_prompt is not None:
        yield from _of_texts(facts, facts.optimize_prompt, "The new guiding text against the recipe's")
    if facts.train_policy is not None and facts.train_policy.second_turn is not None:
        what = "The guiding text of the second turn against that of the first, with the trained policy"
        yield from _of_texts(facts, facts.train_policy.second_turn, what)


def _of_texts(facts: RunFacts, search: TextSearch, what: str) -> Iterable[Comparison]:
    """What a search gained, if it found another text."""
    if not search.changed:
        return
    before, after = search.start_score, search.score
    limit = (
        f"It was chosen by its reward on {plural(facts.recipe.optimizers.prompt.passages, 'passage')}, and "
        "measured on the same ones."
    )
    if (seen := search.confirmation) is not None:
        before, after = seen.start_score, seen.score
        limit = f"On {plural(seen.passages, 'passage')} that chose nothing, of one seed."
    yield Comparison(what, (f"reward {number(before)} before, {number(after)} after",), limit)


def _too_small(rows: Sequence[MetricRow]) -> str:
    """Which effects so many questions cannot show; a width of 0 (no answer changed) says nothing about them."""
    ends = [(row, row["difference_low"], row["difference_high"]) for row in rows]
    wide = [(row, (high - low) / 2) for row, low, high in ends if low is not None and high is not None and high > low]
    questions = max(row["n"] for row in rows)
    if not wide or questions >= _FEW_QUESTIONS:
        return "Another seed may move each of these by more than its interval."
    effects = ", ".join(f"{number(half, 2)} in {_metric(row)}" for row, half in wide)
    return f"Effects smaller than about {effects}: {questions} test questions cannot show them."


def _of_rubrics(against: Sequence[MetricRow]) -> str:
    if not against:
        return "Whether rubrics helped: this run kept no paired comparison with pairs written without one."
    if all(judgement(row) == "not told apart" for row in against):
        return "Whether rubrics helped: no difference to pairs written without one excludes 0."
    return "Rubric or chance: one seed cannot show which."


def _limits(facts: RunFacts) -> tuple[str, ...]:
    limits = [
        "Whether a pair is true: the checks are rules, no person has read the pairs, and influence says what helps "
        "this target with these validation questions."
    ]
    if facts.recipe.models.generator.provider == "embedded":
        limits.append("What a real generator would give: these pairs were written by the small embedded model.")
    return tuple(limits)
