"""Whether influence knows right pairs from wrong ones about the same passage.

    python benchmarks/right_pairs.py --recipe benchmarks/study/humanities.yaml --set warm_up.pairs=64 \
        --pairs benchmarks/writer_prompts/encyclopaedia.jsonl

The right pairs were written by hand, by a language model that took care, under the rubrics of
`benchmarks/writer_prompts`. Beside each stand a wrong one, its question with the answer of another pair of the same
form (of four options: another of them), and, where `benchmarks/results/writer_samples.jsonl` has any, the embedded
writer's own pairs under the same rubric that passed the checks and that a reader found wrong or without sense. All
are scored by the recipe's target after its warm-up, without the checks. Intervals are over passages, 95 %. Its stages
resume, as runs do.

With `--by-question` it scores by each validation question alone, and says what the mean over all of them, over those
that the target answers and over those that it misses, and the gradient of the answers' mean probability
(`influence.question_gradients: probability`) make of the same pairs.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from policy_remedies import warmed_up
from scipy.stats import bootstrap

from optimsyn.base.files import write_json, write_text
from optimsyn.data.records import Pair, Rubric
from optimsyn.influence.directions import counted_length
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.trainings import schedule
from optimsyn.reward.look.trainings import trainings_of
from optimsyn.stages.shared import Tools
from optimsyn.target.encoding import counted

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH, LR = 8, 8, 2e-4
# Nats a token: a third of the questions of humanities lie below the one, and above the other.
ANSWERED, MISSED = 0.3, 1.0
KINDS = {"swapped": "another answer", "own": "the writer's own, valid, wrong to a reader"}


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="changes of the recipe")
    parser.add_argument("--pairs", type=Path, required=True, help="a file of benchmarks/writer_prompts")
    parser.add_argument("--samples", type=Path, default=RESULTS / "writer_samples.jsonl")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=RESULTS / "right_pairs.json", help="the recipe is added to it")
    parser.add_argument("--train", type=int, default=0, help="also train on so many right pairs and wrong ones")
    parser.add_argument("--questions", type=int, default=40, help="validation questions whose loss --train measures")
    parser.add_argument("--by-question", action="store_true", help="score by each question alone")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th passage")
    parser.add_argument("--limit", type=int, help="passages, for a trial")
    return parser.parse_args()


def pair_of(kind: str, number: str, row: dict[str, Any], rubric: Rubric, values: dict[str, Any], context: bool) -> Pair:
    """A pair about a passage."""
    options = tuple(values["options"] or ())
    return Pair(
        id=f"{kind}-{number}",
        question=values["question"],
        answer=values["answer"],
        choices=options or None,
        answer_index=options.index(values["answer"]) if options else None,
        quote=values["quote"],
        context=row["passage"] if context else None,
        passage_id=row["id"],
        rubric=rubric,
    )


def pairs_of(rows: Sequence[dict[str, Any]], graded: Sequence[dict[str, Any]], *, context: bool) -> list[Pair]:
    """The right pairs, `right-N`, and the wrong ones of the same rubric, `swapped-N` and `own-N`."""
    draw = random.Random(0)
    wanted = [(row, each) for row in rows for each in row["wanted"] if "pair" in each]
    wrong: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in graded:
        if each.get("grade") == 0 and each["question"] and each["obeys"] and not each["failed"]:
            wrong.setdefault((each["passage_id"], each["asked"]), []).append(each)
    pairs = []
    for number, (row, each) in enumerate(wanted):
        rubric, right = Rubric(**each["rubric"]), each["pair"]
        pairs.append(pair_of("right", str(number), row, rubric, right, context))
        others = [
            other["pair"]["answer"]
            for there, other in wanted
            if other["form"] == each["form"] and there["id"] != row["id"] and other["pair"]["answer"] != right["answer"]
        ]
        if right["options"]:
            others = [option for option in right["options"] if option != right["answer"]]
        if others:
            swapped = {**right, "answer": draw.choice(others)}
            pairs.append(pair_of("swapped", str(number), row, rubric, swapped, context))
        own = wrong.get((row["id"], rubric.question_type), [])
        pairs += [pair_of("own", f"{number}.{n}", row, rubric, values, context) for n, values in enumerate(own)]
    return pairs


def compared(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each kind of wrong pair: how much less influence it has than the right one, in means over passages."""
    by_kind: dict[str, dict[str, list[float]]] = {}
    passage_of: dict[str, str] = {}
    for row in scores:
        kind, _, name = row["id"].partition("-")
        number = name.partition(".")[0]
        by_kind.setdefault(kind, {}).setdefault(number, []).append(row["influence"])
        passage_of[number] = row["passage_id"]
    right = {number: values[0] for number, values in by_kind["right"].items()}
    result: dict[str, Any] = {}
    for kind in KINDS:
        wrong = {number: fmean(values) for number, values in by_kind.get(kind, {}).items()}
        passages: dict[str, list[tuple[float, float]]] = {}
        for number, value in wrong.items():
            passages.setdefault(passage_of[number], []).append((right[number], value))
        means = np.array([np.mean(values, axis=0) for values in passages.values()])
        if len(means) < 2:
            continue
        gaps = means[:, 0] - means[:, 1]
        interval = bootstrap((gaps,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
        result[kind] = {
            "pairs": sum(map(len, by_kind[kind].values())),
            "rubrics": len(wrong),
            "passages": len(means),
            "right": float(means[:, 0].mean()),
            "wrong": float(means[:, 1].mean()),
            "right_less_wrong": float(gaps.mean()),
            "low": float(interval.low),
            "high": float(interval.high),
            "right_above_wrong": fmean(right[number] > value for number, value in wrong.items()),
        }
    return result


def trained(tools: Tools, pairs: Sequence[Pair], count: int, asked: int) -> dict[str, Any]:
    """The loss of some validation questions after eight real steps on right pairs, and on the same with wrong answers.

    From the warm checkpoint, as fine-tuning trains, with two orders of the pairs.
    """
    by_id = {pair.id: pair for pair in pairs}
    numbers = [each.partition("-")[2] for each in by_id if each.startswith("right-")]
    both = [number for number in numbers if f"swapped-{number}" in by_id]
    random.Random(0).shuffle(both)
    items = [by_id[f"{kind}-{number}"] for kind in ("right", "swapped") for number in both[:count]]
    questions = random.Random(1).sample(tools.validation, min(asked, len(tools.validation)))
    trainings = trainings_of(tools.scorer.target, items, questions, tools.recipe.influence, LR)
    half, losses = len(items) // 2, {}
    for seed in (0, 1):
        for name, first in (("right", 0), ("wrong", half)):
            order = schedule(list(range(first, first + half)), STEPS, BATCH, seed)
            losses[f"{name}-{seed}"] = trainings.run([order], [STEPS])[:, 0][0].tolist()
    return {
        "pairs_an_arm": half,
        "steps": STEPS,
        "batch_size": BATCH,
        "lr": LR,
        "questions": len(questions),
        "start": trainings.start().tolist(),
        "losses": losses,
    }


def by_question(
    scores: Sequence[dict[str, Any]], losses: Sequence[float], lengths: Sequence[float]
) -> list[dict[str, Any]]:
    """What ways to join the questions make of right pairs and of the same with other answers.

    Args:
        scores: Of pairs, with `by_question`: the influence by each of Q questions alone, in units of one scale.
        losses: Of the questions, in nats a token.
        lengths: What the sums over the tokens of their answers are divided by.
    """
    told, counts = np.array(losses), np.array(lengths)
    answered, missed = told < ANSWERED, told > MISSED
    ways = {
        "all, mean loss": np.ones_like(told) / len(told),
        f"answered (loss below {ANSWERED} nats a token)": answered / answered.sum(),
        f"missed (loss above {MISSED})": missed / missed.sum(),
        "all, mean probability": counts * np.exp(-counts * told) / len(told),
    }
    rows = []
    for name, votes in ways.items():
        total = [{**row, "influence": float(np.dot(row["by_question"], votes))} for row in scores]
        rows.append({"way": name, "questions": int((votes > 0).sum()), **compared(total)["swapped"]})
    return rows


def scored_by_question(tools: Tools, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The table of `by_question`, and the questions' losses and lengths."""
    target = tools.target
    if len(target.checkpoints) > 1:
        raise SystemExit("--by-question joins the questions of one checkpoint; set warm_up.checkpoints to 1")
    config = tools.recipe.influence.model_copy(update={"question_gradients": "plain", "method": "exact"})
    asked = [question.model_copy(update={"subtask": question.id}) for question in tools.validation]
    scorer = build_scorer(target, asked, config)
    matrix = scorer.score(pairs).by_subtask.tolist()
    rows = [
        {"id": pair.id, "passage_id": pair.passage_id, "by_question": values}
        for pair, values in zip(pairs, matrix, strict=True)
    ]
    samples = {each.id: counted(target.encode(each), config.tokens, "question") for each in asked}
    in_order = [samples[name] for name in scorer.subtasks]
    losses = [0.0] * len(in_order)
    with torch.no_grad():
        for batch in target.batches(in_order):
            for place, value in zip(batch.indices, target.losses(batch).tolist(), strict=True):
                losses[place] = value
    lengths = [counted_length(sample) for sample in in_order]
    return {"losses": losses, "lengths": lengths, "ways": by_question(rows, losses, lengths)}


def markdown(results: dict[str, Any]) -> str:
    """A row for each recipe and kind of wrong pair."""
    lines = [
        "| domain | wrong pairs | rubrics | passages | of the right | of the wrong | difference | right higher |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for recipe, row in results.items():
        for kind, name in KINDS.items():
            if kind in row:
                value = row[kind]
                lines.append(
                    f"| {recipe} | {name} | {value['rubrics']} | {value['passages']} | {value['right']:+.4f} | "
                    f"{value['wrong']:+.4f} | {value['right_less_wrong']:+.4f} "
                    f"[{value['low']:+.4f}, {value['high']:+.4f}] | {value['right_above_wrong']:.0%} |"
                )
    return "\n".join(lines) + "\n"


def markdown_by_question(results: dict[str, Any]) -> str:
    """A row for each recipe and way to join the questions."""
    lines = [
        "| domain | questions | of the right | of the wrong | difference | right higher |",
        "|---|---|---:|---:|---|---:|",
    ]
    for recipe, row in results.items():
        lines += [
            f"| {recipe} | {value['way']}: {value['questions']} | {value['right']:+.5f} | {value['wrong']:+.5f} | "
            f"{value['right_less_wrong']:+.5f} [{value['low']:+.5f}, {value['high']:+.5f}] | "
            f"{value['right_above_wrong']:.0%} |"
            for value in row.get("by_question", {}).get("ways", ())
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Scores and writes the table."""
    args = arguments()
    tools = warmed_up(args)
    lines = args.pairs.read_text(encoding="utf-8").splitlines()[:: args.every]
    rows = [json.loads(line) for line in lines[: args.limit]]
    graded = [json.loads(line) for line in args.samples.read_text(encoding="utf-8").splitlines()]
    pairs = pairs_of(rows, graded, context=tools.shape.open_book)
    known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    name = tools.recipe.name
    if args.by_question:
        known.setdefault(name, {})["by_question"] = scored_by_question(tools, pairs)
    else:
        influence = [float(value) for value in tools.scorer.score(pairs).total]
        scores = [
            {"id": pair.id, "passage_id": pair.passage_id, "influence": value}
            for pair, value in zip(pairs, influence, strict=True)
        ]
        known.setdefault(name, {}).update({"run": tools.run.name, **compared(scores), "scores": scores})
    if args.train:
        known[name]["real_training"] = trained(tools, pairs, args.train, args.questions)
    write_json(args.output, known)
    write_text(args.output.with_suffix(".md"), markdown(known))
    write_text(args.output.with_name(f"{args.output.stem}_by_question.md"), markdown_by_question(known))
    print(markdown(known) + markdown_by_question(known))


if __name__ == "__main__":
    main()
