"""How much of a pair's reward its rubric decides: several rubrics a passage, several pairs a rubric.

    python benchmarks/rubric_share.py --recipe benchmarks/study/humanities.yaml --passages 16 --rubrics 3 --pairs 3

If the rubric decides little, an optimiser of rubrics has little to gain, however many rewards it sees. The reward of
valid pairs is split into the parts of the passage, of the rubric within its passage and of chance within a rubric, by
the nested analysis of variance (Searle, Casella and McCulloch 1992, chapter 3, method I of Henderson), with an interval
from a bootstrap over passages. The same for validity. Resumes: pairs that are judged are not judged again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Nested = list[list[list[float]]]
"""Values of each pair, by passage and rubric."""
_RESAMPLES = 2000


def components(nested: Nested) -> dict[str, float]:
    """Variance components of a nested design with unequal numbers, negative estimates set to 0; and their shares."""
    nested = [[rubric for rubric in passage if rubric] for passage in nested]
    nested = [passage for passage in nested if passage]
    n = sum(len(rubric) for passage in nested for rubric in passage)
    rubrics = [rubric for passage in nested for rubric in passage]
    sizes = [sum(map(len, passage)) for passage in nested]
    grand = sum(map(sum, rubrics)) / n
    means = [sum(map(sum, passage)) / size for passage, size in zip(nested, sizes, strict=True)]
    within = sum((value - np.mean(rubric)) ** 2 for rubric in rubrics for value in rubric)
    between = sum(
        len(rubric) * (np.mean(rubric) - mean) ** 2
        for passage, mean in zip(nested, means, strict=True)
        for rubric in passage
    )
    over = sum(size * (mean - grand) ** 2 for size, mean in zip(sizes, means, strict=True))
    free = (n - len(rubrics), len(rubrics) - len(nested), len(nested) - 1)
    if min(free) < 1:
        return {"passage": float("nan"), "rubric": float("nan"), "chance": float("nan"), "share": float("nan")}
    squares = [sum(len(rubric) ** 2 for rubric in passage) / size for passage, size in zip(nested, sizes, strict=True)]
    k1 = (n - sum(squares)) / free[1]
    k2 = (sum(squares) - sum(len(rubric) ** 2 for rubric in rubrics) / n) / free[2]
    k3 = (n - sum(size**2 for size in sizes) / n) / free[2]
    chance = within / free[0]
    rubric_part = max(0.0, (between / free[1] - chance) / k1)
    passage_part = max(0.0, (over / free[2] - chance - k2 * rubric_part) / k3)
    inside = rubric_part + chance
    return {
        "passage": float(passage_part),
        "rubric": float(rubric_part),
        "chance": float(chance),
        "share": float(rubric_part / inside) if inside else float("nan"),
    }


def with_interval(nested: Nested) -> dict[str, Any]:
    """The components, and a 95% interval of the rubric's share of the variance within a passage."""
    random = np.random.default_rng(0)
    shares = [
        components([nested[index] for index in random.integers(0, len(nested), len(nested))])["share"]
        for _ in range(_RESAMPLES)
    ]
    kept = [share for share in shares if share == share]
    low, high = np.quantile(kept, [0.025, 0.975]) if kept else (float("nan"), float("nan"))
    return {**components(nested), "share_low": float(low), "share_high": float(high)}


def markdown(results: dict[str, Any]) -> str:
    """A table with a row for each recipe."""
    lines = [
        "| recipe | pairs | valid | share of the influence of valid pairs | share of validity |",
        "|---|---:|---:|---|---|",
    ]
    for name, result in results.items():
        cells = " | ".join(
            f"{row['share']:.2f} [{row['share_low']:.2f}, {row['share_high']:.2f}]"
            for row in (result["influence_of_valid"], result["validity"])
        )
        lines.append(f"| {name} | {result['judged']} | {result['valid']} | {cells} |")
    return "\n".join(lines) + "\n"


async def judged(tools: Any, passages: Sequence[Any], rubrics: int, pairs: int) -> list[Any]:
    """The judgements of `pairs` pairs under each of `rubrics` rubrics of each passage, in order."""
    from optimsyn.base.errors import ReplyError
    from optimsyn.base.seeds import derive_seed
    from optimsyn.reward.drafting import RubricRequest

    reward = tools.reward("rubric_share")
    writer = tools.rubric_writer(tools.recipe.guiding_text)
    seed = tools.recipe.seed_of("generator")

    async def rubric(passage: Any, index: int) -> Any:
        own = derive_seed(seed, "share", passage.id, index)
        kind = tools.shape.kind_for(derive_seed(seed, "kind", passage.id))
        try:
            return kind, (await writer.aforward(passage=passage, kind=kind, seed=own)).rubric
        except ReplyError as error:
            return kind, error

    written = await asyncio.gather(*(rubric(passage, index) for passage in passages for index in range(rubrics)))
    requests = []
    for place, (kind, text) in enumerate(written):
        passage = passages[place // rubrics]
        for draw in range(pairs):
            blank = RubricRequest(
                passage=passage,
                kind=kind,
                guiding_text=tools.recipe.guiding_text,
                rubric_model=tools.recipe.models.rubric.name,
                seed=derive_seed(seed, "pair", passage.id, place, draw),
                variant="static",
            )
            requests.append(blank.under(text))
    return list(await reward.judge(requests))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=16)
    parser.add_argument("--rubrics", type=int, default=3, help="of a passage")
    parser.add_argument("--pairs", type=int, default=3, help="of a rubric")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="changes of the recipe")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, help="a JSON file, to which the recipe is added; a table goes beside it")
    args = parser.parse_args()

    import yaml

    from optimsyn.base.seeds import shuffled
    from optimsyn.llm.language_model import run_sync
    from optimsyn.recipe.changes import changed
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.runs.folder import Run
    from optimsyn.stages.own import run_stage
    from optimsyn.stages.shared import Tools

    changes = {field: yaml.safe_load(value) for field, _, value in (each.partition("=") for each in args.set)}
    run = Run.open(changed(Recipe.load(args.recipe), changes), args.folder)
    for stage in ("prepare", "warm_up"):
        run_stage(run, stage)
    tools = Tools(run)
    passages = shuffled(list(tools.passages), tools.recipe.seed_of("data"), "share")[: args.passages]
    rows = run_sync(judged(tools, passages, args.rubrics, args.pairs))
    reward: Nested = []
    valid: Nested = []
    for first in range(0, len(rows), args.rubrics * args.pairs):
        of_passage = [
            rows[place : place + args.pairs] for place in range(first, first + args.rubrics * args.pairs, args.pairs)
        ]
        reward.append(
            [[row.influence for row in each if row.valid and row.influence is not None] for each in of_passage]
        )
        valid.append([[float(row.valid) for row in each if row.unjudged is None] for each in of_passage])
    result = {
        "recipe": tools.recipe.name,
        "passages": len(passages),
        "rubrics": args.rubrics,
        "pairs": args.pairs,
        "judged": len(rows),
        "valid": sum(row.valid for row in rows),
        "influence_of_valid": with_interval(reward),
        "validity": with_interval(valid),
    }
    print(json.dumps(result, indent=1))
    if args.output is not None:
        results = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
        results[tools.recipe.name] = result
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
