"""Follows one passage from guiding text to reward: requests, replies and scores.

For a person who wants to understand or to change a guiding text. Replies are cached beside the run in a separate file,
and the run's own ledger is not touched.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimsyn.base.terminal.table import Table, number
from optimsyn.data.forms import as_text
from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.language_model import run_sync
from optimsyn.llm.replies import Reply, ReplyCache
from optimsyn.programs.pair import PairWriter
from optimsyn.programs.rubric import RubricWriter, rubric_text
from optimsyn.report.drawing import Picture
from optimsyn.report.stage_plots import rewards_figure
from optimsyn.reward.drafting import RubricRequest, requested, with_writer
from optimsyn.reward.judgements import Judgement
from optimsyn.reward.reward import InfluenceReward, RewardOptions
from optimsyn.runs.folder import Run
from optimsyn.stages.shared import Tools


@dataclass(frozen=True)
class Sent:
    """A request for something, such as a rubric, and its reply, shown as text in a notebook.

    Attributes:
        request: Messages, schema and sampling, as in the reply cache.
    """

    what: str
    model: str
    request: dict[str, Any]
    reply: str

    def _repr_html_(self) -> str:
        messages = "\n\n".join(message["content"] for message in self.request["messages"])
        schema = self.request.get("schema")
        # A reply cache sorts properties by name; this list keeps the requested order.
        keys = ", ".join((schema or {}).get("required", []))
        held = "in free form" if schema is None else f"held to a JSON schema{f' with {keys}' if keys else ''}"
        # Not `pre`, which JupyterLab breaks in the middle of words.
        block = 'style="font-family:monospace;white-space:pre-wrap;max-width:60em;line-height:1.35;margin:0.6em 2em"'
        return (
            f"<p><b>{html.escape(self.what)}</b>, sent to {html.escape(self.model)} "
            f"(temperature {self.request['temperature']:g}, at most {self.request['max_tokens']} tokens):</p>"
            f"<div {block}>{html.escape(messages)}</div>"
            f"<p>It answered, {html.escape(held)}:</p><div {block}>{html.escape(self.reply.strip())}</div>"
        )


@dataclass(frozen=True)
class Chain:
    """Guiding text, rubric, pair and reward for one passage.

    Attributes:
        rubric: None where the reply has none; `judgement.reasons` then says why.
        sent: The requests behind it, in order.
    """

    passage: Passage
    guiding_text: str
    rubric: Rubric | None
    pair: Pair | None
    judgement: Judgement
    sent: tuple[Sent, ...]

    def table(self) -> Table:
        """The links of the chain, one per row."""
        row = self.judgement
        failed = f"{'invalid' if row.unjudged is None else 'not judged'} ({', '.join(row.failed)})"
        outcome = f"influence {number(row.influence)}" if row.valid else failed
        rows = (
            ("guiding text", self.guiding_text),
            ("rubric", "–" if self.rubric is None else rubric_text(self.rubric)),
            ("sentence it rests on", "–" if self.pair is None else self.pair.quote),
            ("pair", "–" if self.pair is None else as_text(self.pair)),
            ("verdict", row.feedback),
            ("reward", f"{number(row.reward if row.unjudged is None else None)}  ({outcome})"),
        )
        return Table(f"From “{self.passage.title or self.passage.id}”", ("link", "text"), rows)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


class RecordedReplies(ReplyCache):
    """A reply cache that remembers which requests were answered since `seen` was cleared."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.seen: list[tuple[dict[str, Any], str]] = []

    def get(self, key: str) -> Reply | None:
        """As in ReplyCache; also remembers a cached reply with its request."""
        reply = super().get(key)
        if reply is not None:
            row = self._fetch_row("SELECT request FROM replies WHERE key = ?", (key,))
            assert row is not None
            self.seen.append((json.loads(row[0]), reply.text))
        return reply

    def put(self, key: str, reply: Reply, request: dict[str, Any]) -> None:
        """As in ReplyCache; also remembers the reply."""
        super().put(key, reply, request)
        self.seen.append((request, reply.text))


class Workbench:
    """Follows passages of a run through the chain, with the run's models, checks and warmed-up target.

    Args:
        run: Its stages up to `warm_up` must have finished.
    """

    def __init__(self, run: Run) -> None:
        self.tools = Tools(run)
        models = run.recipe.models
        self._exchanges = RecordedReplies(run.path("workbench", "replies.sqlite"))
        self._rubric_model = load_language_model(models.rubric, self._exchanges, field="models.rubric")
        generator = load_language_model(models.generator, self._exchanges, field="models.generator")
        self._writer = PairWriter(generator, self.tools.shape)
        self._reward = InfluenceReward(
            self.tools.scorer,
            self._writer,
            self.tools.checker,
            invalid_penalty=self.tools.invalid_penalty,
            options=RewardOptions(source="workbench"),
        )

    def passage(self, index: int = 0) -> Table:
        """The passage with this number."""
        passage, _ = self.tools.candidate(index)
        return Table(passage.title or passage.id, ("passage",), ((passage.text,),))

    def follow(self, guiding_text: str, index: int = 0) -> Chain:
        """Writes a rubric under a guiding text, a pair under the rubric, and judges it.

        Args:
            guiding_text: The guiding text of the rubric.
            index: Number of the passage in the run's seeded order; equal numbers give equal seeds.

        Raises:
            ServiceError: A model's service failed for good.
        """
        passage, seed = self.tools.candidate(index)
        blank = RubricRequest(
            passage=passage,
            kind=self.tools.shape.kind_for(seed),
            guiding_text=guiding_text,
            rubric_model=self._rubric_model.name,
            seed=seed,
            variant="workbench",
        )
        self._exchanges.seen.clear()
        request = run_sync(
            requested(blank, with_writer(RubricWriter(self._rubric_model, guiding_text, self.tools.shape)))
        )
        # A truncated reply was requested twice.
        rubrics = len(self._exchanges.seen)
        (judgement,) = run_sync(self._reward.judge([request]))
        pairs = len(self._exchanges.seen) - rubrics
        names = [("A rubric", self._rubric_model.name)] * rubrics + [("A pair", self._writer.model.name)] * pairs
        sent = [Sent(*name, *exchange) for name, exchange in zip(names, self._exchanges.seen, strict=True)]
        return Chain(passage, guiding_text, request.rubric, judgement.pair, judgement, tuple(sent))

    def compare(self, guiding_texts: Mapping[str, str], indices: Sequence[int]) -> Picture:
        """The rewards under named guiding texts on the passages with these numbers, with the same seeds."""
        rewards: dict[str, list[tuple[float, bool]]] = {}
        for name, text in guiding_texts.items():
            for row in (self.follow(text, index).judgement for index in indices):
                if row.unjudged is None:
                    rewards.setdefault(name, []).append((row.reward, row.valid))
        return rewards_figure(rewards)
