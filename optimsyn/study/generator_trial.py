"""A trial of a generator: a few pairs from a run's passages, with their usage and their cost with other models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optimsyn.base.counting import plural
from optimsyn.base.terminal.table import Table
from optimsyn.data.forms import as_text
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted.capabilities import price_of
from optimsyn.llm.language_model import Call, run_sync
from optimsyn.llm.replies import ReplyCache, Usage
from optimsyn.programs.pair import PairWriter
from optimsyn.recipe.recipe import ModelSpec
from optimsyn.report.drawing import Picture
from optimsyn.report.stage_plots import costs_figure
from optimsyn.reward.drafting import Drafter
from optimsyn.runs.folder import Run
from optimsyn.stages.candidates import request_rubrics
from optimsyn.stages.shared import Tools


@dataclass(frozen=True)
class Trial:
    """Pairs from a generator, shown as a table in a notebook.

    The table does not say whether a reply was cached, so that it looks the same when it is shown again.

    Attributes:
        rows: Passage, pair, verdict of the validity checks.
        fresh: Number of new replies; the others came from the cache.
        usage: Usage of all replies of this trial, including cached ones.
        unpriced: Neither the recipe nor LiteLLM knows the model's price.
    """

    model: str
    rows: tuple[tuple[str, str, str], ...]
    fresh: int
    usage: Usage
    unpriced: bool = False

    def _repr_html_(self) -> str:
        used = self.usage
        note = (
            f"{plural(used.replies, 'reply', 'replies')}: {plural(used.input_tokens, 'token')} in, "
            f"{used.output_tokens:,} out, "
            + ("what they cost is unknown." if self.unpriced else f"{used.cost_usd:.4f} USD.")
        )
        return Table(f"Written by {self.model}", ("passage", "pair", "checks"), self.rows, note=note)._repr_html_()

    def prices(self, names: Sequence[str], pairs: int = 1000) -> Prices:
        """The cost of so many pairs of this length from hosted models, by their LiteLLM names, at its list prices."""
        each = max(1, len(self.rows))
        priced = ((name, price_of(ModelSpec(name=name))) for name in names)
        rows = tuple(
            Price(name, price.input, price.output) if price and price.source == "litellm" else Price(name, None, None)
            for name, price in priced
        )
        return Prices(rows, pairs, self.usage.input_tokens / each, self.usage.output_tokens / each)


@dataclass(frozen=True)
class Price:
    """A hosted model's list price, in US dollars per token; None where LiteLLM has none."""

    model: str
    token_in: float | None
    token_out: float | None


@dataclass(frozen=True)
class Prices:
    """The cost of pairs of so many tokens each from hosted models, shown as a table in a notebook."""

    rows: tuple[Price, ...]
    pairs: int
    tokens_in: float
    tokens_out: float

    def cost(self, price: Price) -> float | None:
        """US dollars for all pairs; None where the price is unknown."""
        if price.token_in is None or price.token_out is None:
            return None
        return self.pairs * (self.tokens_in * price.token_in + self.tokens_out * price.token_out)

    def table(self) -> Table:
        """Prices and costs."""
        body = []
        for row in self.rows:
            cost = self.cost(row)
            cells = ["–" if price is None else f"{price * 1e6:.2f}" for price in (row.token_in, row.token_out)]
            body.append((row.model, *cells, "not known to LiteLLM" if cost is None else f"{cost:.2f} USD"))
        columns = ("model", "USD per million tokens in", "out", "in all")
        note = (
            f"{self.tokens_in:.0f} tokens in and {self.tokens_out:.0f} out for a pair, counted by this generator's "
            "tokenizer; models that think before they answer use more. List prices as this LiteLLM knows them."
        )
        return Table(f"{plural(self.pairs, 'pair')} as long as these", columns, tuple(body), frozenset({1, 2, 3}), note)

    def picture(self) -> Picture:
        """Costs as bars, cheapest first."""
        costs = {row.model: cost for row in self.rows if (cost := self.cost(row)) is not None}
        return costs_figure(costs, plural(self.pairs, "pair"))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def try_generator(run: Run, spec: ModelSpec, count: int = 3) -> Trial:
    """Generates pairs without rubrics from the run's first passages; replies are cached beside the run.

    Args:
        run: Its stage `prepare` must have finished.
        spec: The generator.
        count: How many pairs.

    Raises:
        ServiceError: Its service failed for good.
    """
    tools = Tools(run)
    file_name = re.sub(r"[^\w.-]", "-", spec.name)
    cache = ReplyCache(run.path("trials", f"{file_name}.sqlite"))
    before = cache.totals().replies
    model = load_language_model(spec, cache)
    drafter = Drafter(PairWriter(model, tools.shape), tools.checker)
    rows = []
    for request in run_sync(request_rubrics(tools, "no_rubric", range(count))):
        draft = run_sync(drafter.draft(request))
        pair = "–" if draft.pair is None else as_text(draft.pair)
        checks = "valid" if draft.valid else "; ".join(draft.remarks)
        rows.append((draft.passage.title or draft.passage.id, pair, checks))
    # Raise a final refusal of the service instead of showing an empty table.
    model.raise_failure()
    usage = cache.totals()
    cache.close()
    return Trial(spec.name, tuple(rows), usage.replies - before, usage, unpriced=price_of(spec) is None)


def ask_once(spec: ModelSpec, text: str) -> str:
    """Sends one short request without any cache, to test a service; returns the reply.

    Raises:
        ServiceError: The service failed for good; the message says why and what to do.
    """
    return load_language_model(spec).complete_sync(Call.of(text, max_tokens=16)).text
