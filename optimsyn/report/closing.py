"""The end of a run in a terminal: what was made, what it did to the model, what it cost, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import variant_label
from optimsyn.base.terminal.table import duration
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.report import REPORT
from optimsyn.report.page.verdict import verdict
from optimsyn.runs.folder import Run

if TYPE_CHECKING:
    from rich.console import Console


def show_end(run: Run, console: Console) -> None:
    """Shows what a finished run has come to, in sentences, with the commands that go on from there."""
    facts = RunFacts.read(run)
    console.print()
    for paragraph in closing_sentences(facts):
        console.print(paragraph, highlight=False, markup=False)
        console.print()
    console.print("What to do next:", highlight=False)
    for purpose, command in next_steps(run):
        # A path or command that wraps cannot be copied.
        console.print(f"  {purpose}\n    {command}", highlight=False, markup=False, soft_wrap=True)


def closing_sentences(facts: RunFacts) -> list[str]:
    """Paragraphs about a finished run: what was made, what it did, what that does not show, what it cost."""
    outcome = verdict(facts)
    effect = " ".join(filter(None, (outcome.headline, outcome.ends, *outcome.sentences)))
    limits = [f"- {each.what}: {each.limit[:1].lower()}{each.limit[1:]}" for each in outcome.comparisons]
    shown = "\n".join(["What this does not show:", *limits]) if limits else ""
    paragraphs = [" ".join(_made(facts)), effect, shown, _cost(facts)]
    return [text.replace("\u00a0", " ") for text in paragraphs if text]


def next_steps(run: Run) -> list[tuple[str, str]]:
    """What a person may want next, and what to open or to type for it."""
    here, root = Path.cwd(), run.folder.parent
    folder = run.folder.relative_to(here) if run.folder.is_relative_to(here) else run.folder
    into = "" if root == here / "runs" else f" --root {shlex.quote(str(folder.parent))}"
    again = f"optimsyn run {shlex.quote(str(folder / 'recipe.yaml'))} --set seed={run.recipe.seed + 1}{into}"
    return [
        ("Read the report in a browser, with the pairs of every variant side by side:", str(folder / REPORT)),
        ("Train on the pairs, as chat messages (train.jsonl) or with their lineage:", str(folder / "dataset")),
        ("Repeat it with another seed, since one shows little:", again),
        ("Then put both on one page:", f"optimsyn compare {shlex.quote(str(folder.parent))}"),
    ]


def _made(facts: RunFacts) -> Iterator[str]:
    variant, prepared = facts.dataset_variant, facts.prepare
    source = ""
    if prepared is not None and prepared.passages is not None:
        source = f" from {plural(prepared.passages, 'passage')}"
        source += f" of {plural(prepared.documents, 'document')}" if prepared.documents is not None else ""
    pairs = facts.dataset_pairs or 0
    yield f"{facts.name} is finished. It made a dataset of {plural(pairs, 'pair')}{source}."
    lost = facts.losses.get(variant)
    if lost is not None and lost.candidates is not None:
        invalid = f", {lost.invalid:,} of which failed a check" if lost.invalid else ""
        yield (
            f"They are those of the {variant_label(variant)}, chosen from {plural(lost.candidates, 'candidate')}"
            f"{invalid}."
        )


def _cost(facts: RunFacts) -> str:
    cost = facts.manifest.cost
    seconds = [record.seconds for record in facts.manifest.stages if record.seconds is not None]
    took = f"It took {duration(sum(seconds))}" if seconds else "It took a time that was not recorded"
    tokens = cost.input_tokens + cost.output_tokens
    return f"{took} and {plural(cost.replies, 'reply', 'replies')} ({plural(tokens, 'token')}), for {cost.usd()}."
