"""Whether the reward picks the better of several valid pairs about a passage, by real training.

    python benchmarks/best_pairs.py runs/finance-… --steps 48 --output benchmarks/results/best_pairs.json

Of each passage of a run with two or more valid pairs in its ledger, the one of the highest reward and the one of the
lowest: two sets about the same passages, as large as each other. The target is fine-tuned on each and asked test
questions, both as in a run. With `--scores` (a JSON file, key of a judgement to score) the pairs are ordered by other
scores than the ledger's. The difference is paired by question, a question's values are means over seeds, and the 95 %
interval is a bootstrap over documents. Resumes: what is trained and asked is kept in the run's folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from optimsyn.base.files import iter_json, write_json, write_jsonl, write_text
from optimsyn.base.identity import digest_of
from optimsyn.data.records import Pair
from optimsyn.reward.judgements import latest_rows
from optimsyn.runs.lookup import find_run
from optimsyn.stages.shared import Tools
from optimsyn.target.target import Target
from optimsyn.training.evaluation import evaluate
from optimsyn.training.fine_tuning import fine_tune

ENDS = {"best": max, "worst": min}
METRICS = ("loss", "correct", "token_f1")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run whose warm-up has finished, with a ledger")
    parser.add_argument("--scores", type=Path, help="JSON: key of a judgement to its score")
    parser.add_argument("--name", help="of the result; the recipe's without it")
    parser.add_argument("--steps", type=int, help="of the fine-tuning; the recipe's without it")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the fine-tuning")
    parser.add_argument("--questions", type=int, help="test questions; all without it")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file, to which the result is added")
    return parser.parse_args()


def ends_of(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, float]) -> dict[str, list[Pair]]:
    """The pairs of the highest and of the lowest score of each passage with two or more different scores."""
    passages: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["valid"] and row["key"] in scores:
            passages.setdefault(row["passage_id"], []).append(row)
    chosen: dict[str, list[Pair]] = {end: [] for end in ENDS}
    for group in passages.values():
        if len({scores[row["key"]] for row in group}) < 2:
            continue
        for end, pick in ENDS.items():
            row = pick(group, key=lambda row: scores[row["key"]])
            chosen[end].append(Pair.model_validate(row["pair"]))
    return chosen


def difference(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], groups: Mapping[str, str], metric: str
) -> dict[str, Any]:
    """The mean of a metric after each training, and best less worst with an interval over documents."""
    values = {
        name: {row["id"]: float(row[metric]) for row in found if row[metric] is not None}
        for name, found in rows.items()
    }
    gaps: dict[str, list[float]] = {}
    for question, value in values["best"].items():
        gaps.setdefault(groups[question], []).append(value - values["worst"][question])
    sums = np.array([(sum(group), len(group)) for group in gaps.values()])
    interval = bootstrap(
        (sums[:, 0], sums[:, 1]),
        lambda total, count, axis=-1: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=5000,
        rng=0,
    ).confidence_interval
    return {
        **{name: fmean(found.values()) for name, found in values.items()},
        "best_less_worst": float(sums[:, 0].sum() / sums[:, 1].sum()),
        "low": float(interval.low),
        "high": float(interval.high),
        "questions": len(values["best"]),
        "documents": len(gaps),
    }


def markdown(results: Mapping[str, Any]) -> str:
    """A row for each result and metric."""
    lines = [
        "| pairs, ordered by | pairs a set | seeds | metric | before | worst | best | best − worst |",
        "|---|---:|---:|---|---:|---:|---:|---|",
    ]
    for name, result in results.items():
        lines += [
            f"| {name} | {result['pairs']} | {len(result['seeds'])} | {metric} | {value['before']:.3f} | "
            f"{value['worst']:.3f} | {value['best']:.3f} | {value['best_less_worst']:+.3f} "
            f"[{value['low']:+.3f}, {value['high']:+.3f}] |"
            for metric, value in result["metrics"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains, asks and writes the table."""
    args = arguments()
    run = find_run(args.run)
    tools, recipe = Tools(run), run.recipe
    name = args.name or recipe.name
    config = recipe.fine_tune.model_copy(update={"steps": args.steps} if args.steps else {})
    ledger = list(latest_rows(run.folder / "rewards.jsonl"))
    scores = {row["key"]: row["reward"] for row in ledger}
    if args.scores is not None:
        scores = json.loads(args.scores.read_text(encoding="utf-8"))
    sets = ends_of(ledger, scores)
    questions = tools.test[: args.questions]
    # Answers of other pairs, steps or questions are not taken for these.
    facts = [config.model_dump(mode="json"), [[pair.id for pair in pairs] for pairs in sets.values()]]
    folder = run.folder / "best_pairs" / digest_of([*facts, [question.id for question in questions]])
    rows: dict[str, list[dict[str, Any]]] = {}

    def asked(label: str, adapter: Path | None) -> list[dict[str, Any]]:
        file = folder / f"{label}.jsonl"
        if not file.is_file():
            target = Target.load(recipe.trained_target, seed=recipe.seed)
            answers = evaluate(target, questions, recipe.evaluation, adapter=adapter, tokens=recipe.influence.tokens)
            write_jsonl(file, [dict(row) for row in answers])
        return list(iter_json(file))

    rows["before"] = asked("before", None)
    for end, pairs in sets.items():
        each = []
        for seed in args.seeds:
            adapter = fine_tune(recipe.trained_target, pairs, config, folder / f"{end}-{seed}", seed)
            each.append(asked(f"{end}-{seed}", adapter))
        rows[end] = [
            {
                "id": same[0]["id"],
                **{m: None if same[0][m] is None else fmean(float(row[m]) for row in same) for m in METRICS},
            }
            for same in zip(*each, strict=True)
        ]
    groups = {question.id: question.document_id or question.context or question.id for question in questions}
    metrics = {
        metric: difference(rows, groups, metric)
        for metric in METRICS
        if any(row[metric] is not None for row in rows["best"])
    }
    results = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    results[name] = {
        "run": run.name,
        "pairs": len(sets["best"]),
        "steps": config.steps,
        "seeds": args.seeds,
        "metrics": metrics,
    }
    write_json(args.output, results)
    write_text(args.output.with_suffix(".md"), markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
