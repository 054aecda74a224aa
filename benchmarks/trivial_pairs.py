"""Rewards of pairs that teach nothing: trivial, self-answering, copied, malformed and mismatched ones.

    python benchmarks/trivial_pairs.py runs/quickstart-95a3001574

Takes a run whose synthesis has finished, builds bad pairs from its own passages and pairs, and checks and scores them
like any pair. `influence` is the reward without the checks.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optimsyn.base.files import read_jsonl, write_json, write_text
from optimsyn.data.records import Pair, Passage
from optimsyn.reward.judgements import Judgement
from optimsyn.runs import Run
from optimsyn.stages.shared import Tools

RESULTS = Path(__file__).parent / "results"
_TRIVIAL = (
    ("Is the sky blue on a clear day?", "yes"),
    ("How many days does a week have?", "seven"),
    ("What is the capital of France?", "Paris"),
    ("Which animal says meow?", "cat"),
    ("What colour is fresh snow?", "white"),
    ("How much is two plus two?", "four"),
    ("Is water wet?", "yes"),
    ("Which planet do we live on?", "Earth"),
)

Maker = Callable[[Pair, Passage, int], Pair]


def makers(passages: Sequence[Passage]) -> dict[str, Maker]:
    """Functions that spoil a pair, by name; each gets a good pair, its passage and a number."""

    def of(pair: Pair, **changes: Any) -> Pair:
        plain = {"choices": None, "answer_index": None, "quote": ""}
        return pair.model_copy(update={**plain, **changes})

    def trivial(pair: Pair, passage: Passage, number: int) -> Pair:
        question, answer = _TRIVIAL[number % len(_TRIVIAL)]
        return of(pair, question=question, answer=answer)

    def elsewhere(pair: Pair, passage: Passage, number: int) -> Pair:
        others = [each for each in passages if each.document_id != passage.document_id]
        other = others[(7 * number + 1) % len(others)]
        return of(pair, passage_id=other.id, document_id=other.document_id)

    def noise(pair: Pair, passage: Passage, number: int) -> Pair:
        letters = random.Random(number)
        words = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(8)]
        return of(pair, question=" ".join(words[:7]) + "?", answer=words[7])

    return {
        "trivial": trivial,
        "answer is the title": lambda p, s, n: of(p, question=f"What is {s.title} about?", answer=s.title),
        "answered by itself": lambda p, s, n: of(p, question=f"Is it {p.answer} that is {p.answer}?"),
        "mentions the document": lambda p, s, n: of(p, question=f"According to the passage, {_lower(p.question)}"),
        "copy of the passage": lambda p, s, n: of(p, question=f"What is known of {s.title}?", answer=s.text),
        "cut off": lambda p, s, n: of(p, question=" ".join(p.question.split()[:3]), answer=p.answer),
        "random letters": noise,
        "choices without the answer": lambda p, s, n: of(p, choices=("one", "two", "one"), answer_index=0),
        "of another document": elsewhere,
    }


def _lower(text: str) -> str:
    return re.sub(r"^\w", lambda match: match[0].lower(), text)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """A 95% percentile bootstrap interval of the mean."""
    from scipy.stats import bootstrap

    if len(set(values)) < 2:
        return values[0], values[0]
    result = bootstrap((values,), statistics.fmean, method="percentile", n_resamples=2000, rng=seed)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def measure(run: Run, count: int) -> dict[str, Any]:
    """Rewards of the run's own candidates and of spoilt pairs."""
    tools = Tools(run)
    passages = {passage.id: passage for passage in tools.passages}
    penalty = tools.invalid_penalty
    rows = []
    good: list[Pair] = []
    for variant in run.recipe.variants:
        judged = read_jsonl(run.path("synthesize", f"{variant}.candidates.jsonl"), Judgement)
        influence = [row.influence for row in judged if row.influence is not None]
        rewards = [row.reward for row in judged]
        rows.append(row_of(f"written: {variant}", sum(row.valid for row in judged), influence, rewards))
        good += [row.pair for row in judged if row.valid and row.pair is not None]
    unique = list({pair.question: pair for pair in good if pair.choices is None}.values())
    chosen = random.Random(run.recipe.seed).sample(unique, min(count, len(unique)))
    for name, make in makers(tools.passages).items():
        pairs = [
            make(pair, passages[pair.passage_id], number).model_copy(update={"id": f"{name}-{number}"})
            for number, pair in enumerate(chosen)
        ]
        valid = [tools.checker.check(pair, passages[pair.passage_id]).valid for pair in pairs]
        influence = [float(value) for value in tools.scorer.score(pairs).total]
        rewards = [value if ok else -penalty for value, ok in zip(influence, valid, strict=True)]
        rows.append(row_of(name, sum(valid), influence, rewards))
    return {
        "run": run.name,
        "estimator": f"{run.recipe.influence.estimator}, {run.recipe.influence.normalization}",
        "zero_gradient_baseline": tools.scorer.zero_gradient_baseline()["total"],
        "seed": run.recipe.seed,
        "rows": rows,
    }


def row_of(name: str, valid: int, influence: Sequence[float], rewards: Sequence[float]) -> dict[str, Any]:
    """A row of the table."""
    low, high = interval(rewards)
    mean = statistics.fmean(influence) if influence else None
    return {
        "pairs": name,
        "n": len(rewards),
        "valid": valid,
        "influence": mean,
        "reward": statistics.fmean(rewards),
        "low": low,
        "high": high,
    }


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"Run `{result['run']}`, seed {result['seed']}, estimator {result['estimator']}; influence of a pair without "
        f"gradient: {result['zero_gradient_baseline']:.4f}. Reward: mean with a 95% bootstrap interval over pairs.",
        "",
        "| pairs | n | valid | influence without checks | reward |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['pairs']} | {row['n']} | {row['valid']} | {row['influence']:+.3f} | "
        f"{row['reward']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run whose synthesis has finished")
    parser.add_argument("--count", type=int, default=16, help="spoilt pairs of each kind")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    result = measure(Run.load(args.run), args.count)
    write_json(args.output / "trivial_pairs.json", result)
    write_text(args.output / "trivial_pairs.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
