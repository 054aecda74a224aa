"""The outcome of a run, in sentences that claim no more than its numbers show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimsyn.base.terminal.labels import METRIC_LABELS, control_sentence, variant_label
from optimsyn.base.terminal.table import number
from optimsyn.report.facts import RunFacts
from optimsyn.report.tables import interval
from optimsyn.runs.outcomes import RunState, commands, judgement
from optimsyn.training.intervals import MetricRow

_FEW_QUESTIONS = 200


@dataclass(frozen=True)
class Failure:
    """Where (stage and cell) and why a run stopped, the cell's code and the executed notebook; "" where unknown."""

    place: str
    reason: str
    source: str
    notebook: str


@dataclass(frozen=True)
class Verdict:
    """The top of a report; a tone is good, bad or open, and that of the whole may differ from that of the badge.

    A finished run may have made a target worse. `cannot` is what the numbers do not show.
    """

    badge: str
    badge_tone: str
    tone: str
    headline: str
    sentences: tuple[str, ...]
    cannot: tuple[str, ...]
    failure: Failure | None
    commands: tuple[tuple[str, str], ...]


def verdict(facts: RunFacts, state: RunState) -> Verdict:
    """The verdict on a run in any state."""
    if state.kind == "finished":
        tone, headline, sentences = _result(facts)
        sentences = (*_on_the_reward(facts), *sentences)
        return Verdict("finished", "good", tone, headline, sentences, _limits(facts), None, ())
    typed = commands(facts.folder)
    going_on = [("Continue; what is finished is not repeated, and no reply is bought twice", typed["continue"])]
    if state.kind in ("failed", "interrupted"):
        going_on.append(("Or step on by hand in JupyterLab, where it stopped", typed["open"]))
    headline = {
        "failed": f"It failed in {state.place}.",
        "interrupted": f"It was interrupted in {state.place}.",
        "running": f"It was still running when this page was written: {state.place}.",
        "unfinished": f"It stopped before {state.waiting[0]}; what was done until then is finished.",
        "new": "No stage has run yet.",
    }[state.kind]
    tone = "bad" if state.kind == "failed" else "open"
    so_far = (
        f"{stage} has judged {judged.pairs:,} pairs so far, {judged.valid:,} of them valid."
        for stage, judged in facts.judged.items()
    )
    return Verdict(
        badge={"new": "not started"}.get(state.kind, state.kind),
        badge_tone=tone,
        tone=tone,
        headline=headline,
        sentences=(*_on_the_reward(facts), *so_far),
        cannot=("What the pairs are worth: no target has been fine-tuned and evaluated on all of them yet.",),
        failure=_failure(facts, state),
        commands=() if state.kind == "running" else tuple(going_on),
    )


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


def _listed(rows: Sequence[MetricRow]) -> str:
    return "; ".join(f"{_metric(row)} {_change(row)}, {judgement(row)}" for row in rows)


def _result(facts: RunFacts) -> tuple[str, str, tuple[str, ...]]:
    """Tone, headline and further sentences of a finished run."""
    variant = facts.dataset_variant
    rows = _of(facts.evaluation, variant)
    if not rows:
        return "open", "Every stage has finished, but there is no evaluation of the dataset.", ()
    questions = max(row["n"] for row in rows)
    pairs = "pairs" if facts.dataset_pairs is None else f"{facts.dataset_pairs:,} pairs"
    first, *others = rows
    outcome = judgement(first)
    words = {
        "better": f"Fine-tuning on the dataset's {pairs} improved the target",
        "worse": f"Fine-tuning on the dataset's {pairs} made the target worse",
        "not told apart": f"Fine-tuning on the dataset's {pairs} made no difference that {questions} questions show",
    }
    headline = f"{words.get(outcome, 'The dataset was evaluated')}: {_metric(first)} {_change(first)}."
    sentences = [f"The dataset is that of the {variant_label(variant)}; changes are against the target as it came."]
    if others:
        listed = _listed(others)
        sentences.append(f"{listed[:1].upper()}{listed[1:]}.")
    sentences += _without_rubric(facts, variant)
    return {"better": "good", "worse": "bad"}.get(outcome, "open"), headline, tuple(sentences)


def _without_rubric(facts: RunFacts, variant: str) -> list[str]:
    """The result of pairs without a rubric, so that an improvement is not credited to rubrics alone."""
    plain = _of(facts.evaluation, "no_rubric")
    if variant == "no_rubric" or not plain:
        return []
    sentences = [f"As many pairs written without a rubric: {_listed([row for row in plain if judgement(row)])}."]
    against = [row for row in _of(facts.against_no_rubric, variant) if judgement(row)]
    return [*sentences, f"The dataset against those: {_listed(against)}."] if against else sentences


def _limits(facts: RunFacts) -> tuple[str, ...]:
    variant = facts.dataset_variant
    rows = _of(facts.evaluation, variant)
    limits = []
    unclear = [row for row in rows if judgement(row) == "not told apart"]
    if unclear:
        names = " and ".join(_metric(row) for row in unclear)
        limits.append(f"Whether the dataset changed {names}: the interval of the paired difference includes 0.")
    against = [row for row in _of(facts.against_no_rubric, variant) if judgement(row)]
    if against and all(judgement(row) == "not told apart" for row in against):
        limits.append("Whether rubrics helped: no difference to pairs written without one excludes 0.")
    elif not against and variant != "no_rubric":
        limits.append("Whether rubrics helped: this run kept no paired comparison with pairs written without one.")
    limits.append(
        f"How another seed would come out: intervals are over questions, with one seed ({facts.recipe.seed_label}) of "
        "everything else."
    )
    # A width of 0 (no answer changed) says nothing about detectable effects.
    ends = [(row, row["difference_low"], row["difference_high"]) for row in rows]
    wide = [(row, (high - low) / 2) for row, low, high in ends if low is not None and high is not None and high > low]
    if wide and max(row["n"] for row, _ in wide) < _FEW_QUESTIONS:
        effects = ", ".join(f"{number(half, 2)} in {_metric(row)}" for row, half in wide)
        limits.append(f"Effects smaller than about {effects}: {wide[0][0]['n']} test questions cannot show them.")
    prompt = facts.optimize_prompt
    if prompt is not None and prompt.changed and prompt.confirmation is None:
        limits.append(
            "How much better the new guiding text is: it was chosen by its reward on "
            f"{facts.recipe.optimizers.prompt.passages} passages, and measured on the same ones."
        )
    limits.append(
        "Whether a pair is true: the checks are rules, no person has read the pairs, and influence says what helps "
        "this target with these validation questions."
    )
    if facts.recipe.models.generator.provider == "embedded":
        limits.append("What a real generator would give: these pairs were written by the small embedded model.")
    return tuple(limits)
