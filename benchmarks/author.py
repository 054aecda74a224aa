"""The author's rubrics beside those of the static guiding text and of the policy, on passages that nobody learned from.

    python benchmarks/author.py --folder RUNS                       # all embedded, on the CPU
    python benchmarks/author.py --folder RUNS --device cuda
    python benchmarks/author.py --folder RUNS --author openai/NAME  # a chat model that calls the tools itself

Prepares a run of a recipe, warms the target up and trains the policy, each once: the folder is kept, and another call
with the same recipe goes on from there. Then each writer gives a rubric for each held passage, and two rewards are
measured: that of the pair that the rubric was chosen by, which is luckier for whoever tries more, and the mean of fresh
pairs, written under the same rubric with seeds that chose nothing. Last, the rubric model is asked to call the tools
itself, to count how many of its steps are any. Prints a table, writes author.json and author.md into --results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from optimsyn.base.errors import ServiceError
from optimsyn.base.seeds import derive_seed
from optimsyn.base.terminal.table import number
from optimsyn.data.records import Passage, Rubric
from optimsyn.llm.language_model import run_sync
from optimsyn.llm.reply import Usage, heard_replies
from optimsyn.optimize.rounds.held import compared
from optimsyn.recipe.recipe import Recipe
from optimsyn.reward.drafting import RubricRequest
from optimsyn.reward.judgements import Judgement
from optimsyn.reward.reward import InfluenceReward
from optimsyn.runs.folder import Run
from optimsyn.stages.candidates import author_of, rubric_source
from optimsyn.stages.own import run_stage
from optimsyn.stages.shared import Tools

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "warm_up", "optimize_prompt", "train_policy")
WRITERS = ("static", "static, best of {n} pairs", "author, {n} drafts", "policy")


@dataclass(frozen=True)
class Written:
    """One rubric for one passage.

    Attributes:
        passage_id: The passage.
        chosen: The judgement of the pair that it was chosen by.
        fresh: Those of pairs that chose nothing.
        pairs: Pairs that were written until it was chosen.
        usage: Requests and tokens until it was chosen.
    """

    passage_id: str
    chosen: Judgement
    fresh: list[Judgement]
    pairs: int
    usage: Usage


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe, with an author and passages of their own for the synthesis."""
    changes: dict[str, Any] = {
        "author.enabled": True,
        "author.drafts": args.drafts,
        "author.lessons": args.lessons,
        "optimizers.prompt.enabled": False,
        "optimizers.policy.enabled": True,
        "optimizers.policy.method": "expert",
        "optimizers.policy.rounds": args.rounds,
        "optimizers.policy.steps": args.steps,
        "optimizers.policy.learn_from": ["author"] if args.learn_from_author else [],
        "synthesis.passages": "disjoint",
        "warm_up.pairs": args.first_draft,
        "reward.look.pairs": 0,
    }
    if args.author:
        changes["models.author"] = args.author
    if args.device != "cpu":
        changes |= {f"models.{role}.device": args.device for role in ("generator", "rubric", "target")}
    return Recipe.load(args.recipe, changes=changes)


async def measured(
    tools: Tools, reward: InfluenceReward, passages: Sequence[Passage], args: argparse.Namespace
) -> dict[str, list[Written]]:
    """What each writer wrote for each passage."""
    author = author_of(tools, reward)
    sources = {name: rubric_source(tools, name, author=author) for name in ("static", "author", "policy")}

    async def by(variant: str, passage: Passage) -> tuple[RubricRequest, Judgement, int]:
        request = await sources[variant](blank(tools, passage, variant))
        row = await judged_pair(reward, request)
        done = (
            author.trajectories.get((request.guiding_text, passage.id, request.seed)) if variant == "author" else None
        )
        return request, row, 1 if done is None else len(done.drafts)

    async def best_of_pairs(passage: Passage) -> tuple[RubricRequest, Judgement, int]:
        request = await sources["static"](blank(tools, passage, "static"))
        rows = [await judged_pair(reward, again(request, n)) for n in range(args.drafts)]
        return request, max(rows, key=lambda row: (row.valid, row.reward)), args.drafts

    async def one(write: Callable[[], Awaitable[tuple[RubricRequest, Judgement, int]]]) -> Written:
        with heard_replies() as heard:
            request, chosen, pairs = await write()
            usage = Usage.of(heard)
            fresh = [await judged_pair(reward, again(request, 100 + n)) for n in range(args.fresh)]
        return Written(request.passage.id, chosen, fresh, pairs, usage)

    async def with_usage(passage: Passage) -> Written:
        written = await one(lambda: by("author", passage))
        # The author's own record counts what its tools had written, which hides its replies from the others.
        done = author.trajectories[tools.recipe.guiding_text, passage.id, seed_of(tools, passage)]
        return Written(written.passage_id, written.chosen, written.fresh, written.pairs, done.usage)

    names = [name.format(n=args.drafts) for name in WRITERS]
    ways: list[Callable[[Passage], Awaitable[Written]]] = [
        lambda passage: one(lambda: by("static", passage)),
        lambda passage: one(lambda: best_of_pairs(passage)),
        with_usage,
        lambda passage: one(lambda: by("policy", passage)),
    ]
    found: dict[str, list[Written]] = {}
    for name, way in zip(names, ways, strict=True):
        began = time.monotonic()
        found[name] = [await way(passage) for passage in passages]
        print(f"{name}: {len(passages)} passages in {time.monotonic() - began:.0f} s", flush=True)
    return found


async def judged_pair(reward: InfluenceReward, request: RubricRequest) -> Judgement:
    """One pair, written and judged; its replies are heard also where its judgement is known from an earlier call."""
    await reward.drafter.write(request)
    with heard_replies():
        (row,) = await reward.judge([request])
    return row


def seed_of(tools: Tools, passage: Passage) -> int:
    """The seed of a passage's rubrics and of the pairs that choose them."""
    return derive_seed(tools.recipe.seed, "benchmark of the author", passage.id)


def blank(tools: Tools, passage: Passage, variant: str) -> RubricRequest:
    """The request for a rubric."""
    seed = seed_of(tools, passage)
    return RubricRequest(
        passage=passage,
        kind=tools.shape.kind_for(seed),
        guiding_text=tools.recipe.guiding_text,
        rubric_model=tools.recipe.models.rubric.name,
        seed=seed,
        variant=variant,
    )


def again(request: RubricRequest, number: int) -> RubricRequest:
    """The same rubric with another seed of its pair; the first is its own."""
    seed = request.seed if number == 0 else derive_seed(request.seed, "pair", number)
    return request.model_copy(update={"seed": seed})


def by_passage(rows: Sequence[Written], *, fresh: bool) -> dict[str, float]:
    """The mean reward of each passage's pairs, without those that could not be judged."""
    rewards: dict[str, float] = {}
    for row in rows:
        judged = [each.reward for each in (row.fresh if fresh else [row.chosen]) if each.unjudged is None]
        if judged:
            rewards[row.passage_id] = fmean(judged)
    return rewards


async def tool_calls(
    tools: Tools, reward: InfluenceReward, passages: Sequence[Passage], author_model: bool
) -> dict[str, Any]:
    """How the model behaves that has to call the tools itself, in lines."""
    author = author_of(tools, reward)
    author.config = author.config.model_copy(update={"decides": "model", "steps": 12})
    stopped = ""
    try:
        for passage in passages:
            await author.ask(blank(tools, passage, "author by itself"))
    except ServiceError as error:
        # Hardly any reply held a step; the run would stop here as well.
        stopped = str(error)
    done = list(author.trajectories.values())
    steps = [step for each in done for step in each.steps]
    return {
        "model": author.model.name,
        "passages": len(done),
        "steps": len(steps),
        "of use": fmean(not step.misuse for step in steps) if steps else 0.0,
        "tools": dict(Counter(step.tool or "none" for step in steps).most_common()),
        "ended": dict(Counter(str(each.ended) for each in done)),
        "with a scored draft": sum(any(draft.reward is not None for draft in each.drafts) for each in done),
        "finished with the best of two or more": sum(_chose_well(each.drafts, each.chosen) for each in done),
        "stopped": stopped,
        "asked": "its own steps" if author_model else "in lines after a worked example; its writer drafts",
    }


def _chose_well(drafts: Sequence[Any], chosen: int | None) -> bool:
    scored = {n: each.reward for n, each in enumerate(drafts, 1) if each.reward is not None}
    return len(scored) > 1 and chosen is not None and scored.get(chosen) == max(scored.values())


def table(found: dict[str, list[Written]]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each writer, as numbers and as Markdown."""
    first = next(iter(found))
    rows, lines = [], [
        "| writer | reward of the chosen pair | of fresh pairs | difference to static, fresh | valid, fresh | "
        "different rubrics | pairs | requests | tokens |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, written in found.items():
        fresh = by_passage(written, fresh=True)
        gain = compared(fresh, by_passage(found[first], fresh=True))
        judged = [each for row in written for each in row.fresh if each.unjudged is None]
        row = {
            "writer": name,
            "passages": len(written),
            "chosen": fmean(by_passage(written, fresh=False).values() or [0.0]),
            "fresh": fmean(fresh.values() or [0.0]),
            "difference": gain.mean,
            "low": gain.low,
            "high": gain.high,
            "valid": fmean(each.valid for each in judged) if judged else None,
            "rubrics": len({_text(each.chosen.rubric) for each in written}),
            "pairs": fmean(each.pairs for each in written),
            "requests": fmean(each.usage.replies for each in written),
            "tokens": fmean(each.usage.tokens for each in written),
            "cost_usd": fmean(each.usage.cost_usd for each in written),
        }
        rows.append(row)
        apart = "–" if name == first else f"{gain.mean:+.4f}"
        if name != first and gain.low is not None:
            apart += f" ({gain.low:+.4f} to {gain.high:+.4f})"
        lines.append(
            f"| {name} | {row['chosen']:+.4f} | {row['fresh']:+.4f} | {apart} | {number(row['valid'])} | "
            f"{row['rubrics']} | {row['pairs']:.1f} | {row['requests']:.1f} | {row['tokens']:,.0f} |"
        )
    return rows, lines


def _text(rubric: Rubric | None) -> str:
    return "" if rubric is None else rubric.model_dump_json()


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="runs are kept here")
    parser.add_argument("--recipe", default="finance", help="a recipe file, or the name of one that comes along")
    parser.add_argument("--passages", type=int, default=24, help="held passages")
    parser.add_argument("--drafts", type=int, default=3, help="of the author, and pairs of static's rival")
    parser.add_argument("--fresh", type=int, default=3, help="pairs under each rubric that chose nothing")
    parser.add_argument("--first-draft", type=int, default=24, help="pairs of the warm-up")
    parser.add_argument("--rounds", type=int, default=1, help="of the policy's training (expert iteration)")
    parser.add_argument("--steps", type=int, default=4, help="of the sampling of one round")
    parser.add_argument("--lessons", type=int, default=8, help="passages that the author teaches on")
    parser.add_argument("--learn-from-author", action="store_true", help="the author's rubrics enter the policy's pool")
    parser.add_argument("--tool-calls", type=int, default=8, help="passages on which the model calls the tools itself")
    parser.add_argument("--author", help="a chat model that calls the tools; without it, the plan for base models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    run = Run.open(recipe_of(args), args.folder)
    for stage in STAGES:
        run_stage(run, stage)
    tools = Tools(run)
    reward = tools.reward("benchmark of the author")
    passages = tools.passages_for("synthesize")[: args.passages]
    found = run_sync(measured(tools, reward, passages, args))
    rows, lines = table(found)
    by_itself = run_sync(tool_calls(tools, reward, passages[: args.tool_calls], bool(args.author)))
    facts = {
        "recipe": run.recipe.name,
        "passages": len(passages),
        "drafts": args.drafts,
        "fresh": args.fresh,
        "author": args.author or "embedded, by the plan",
        "policy": "expert iteration" + (", with the author's rubrics in its pool" if args.learn_from_author else ""),
        "device": args.device,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    result = {"facts": facts, "rows": rows, "tool_calls": by_itself}
    (args.results / "author.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    called = (
        f"Asked to call the tools itself ({by_itself['asked']}), {by_itself['model']} took {by_itself['steps']} steps "
        f"for {by_itself['passages']} passages; {by_itself['of use']:.0%} were a use of a tool, "
        f"{by_itself['with a scored draft']} passages had a scored draft, and for "
        f"{by_itself['finished with the best of two or more']} the best of two or more drafts was taken."
    )
    text = "\n".join([", ".join(f"{name}: {value}" for name, value in facts.items()), "", *lines, "", called]) + "\n"
    (args.results / "author.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
