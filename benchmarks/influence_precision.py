"""How accurate are the scores of a 16-bit target? Every method against float32, on the same checkpoint.

    python benchmarks/influence_precision.py --dtype bfloat16                        # the embedded model, quickstart
    python benchmarks/influence_precision.py --dtype bfloat16 --device cuda --pool DATA/medicine/validation.jsonl
    python benchmarks/influence_precision.py --dtype bfloat16 --pairs 8 --questions 6 --warm-up 4     # in small

The target is warmed up once, in float32; its adapter is copied into a target of `--dtype`. Scores use the recipe's
defaults (adam_linear, dot). Reference: `InfluenceScorer` on the float32 target, with its own validation directions. The
default is the method of `influence.method: auto`; it passes with a Spearman correlation of at least .98.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from optimsyn.base.files import iter_json, write_json, write_text
from optimsyn.data.chat import sample_of
from optimsyn.data.questions import read_questions
from optimsyn.data.records import Question, Sample
from optimsyn.influence.accuracy import percent, relative_error
from optimsyn.influence.derivative.forward import ForwardScorer
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.recipe import Questions, Source, TargetSpec
from optimsyn.recipe.sections.influence import Influence
from optimsyn.target.target import Target

RESULTS = Path(__file__).parent / "results"
WAYS = ("default", "exact", "forward", "twin", "exact, mixed", "forward, mixed", "exact, float32")
LEAST = 0.98


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pool", type=Path, default=None, help="JSON lines of questions or pairs; else the quickstart")
    parser.add_argument("--asked", type=Path, default=None, help="JSON lines of the questions; else from --pool too")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--warm-up", type=int, default=14, help="samples and steps")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--name", default="influence_precision")
    return parser.parse_args(words)


def samples_of(args: argparse.Namespace) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Pairs, questions and warm-up samples, drawn at random."""
    asked = [] if args.asked is None else _drawn(_read(args.asked), args.questions, args.seed, args.asked)
    pooled = args.pairs + args.warm_up + (0 if asked else args.questions)
    drawn = _drawn(_pool(args), pooled, args.seed, args.pool)
    pairs, rest = drawn[: args.pairs], drawn[args.pairs :]
    return pairs, asked or rest[args.warm_up :], rest[: args.warm_up]


def _pool(args: argparse.Namespace) -> list[Sample]:
    if args.pool is None:
        source = Source(path="embedded:quickstart")
        questions = read_questions(Questions(validation=source), None, args.seed, complete=False)
        return [sample_of(question) for question in [*questions.validation, *questions.test]]
    return _read(args.pool)


def _read(file: Path) -> list[Sample]:
    """Each text once."""
    samples: dict[str, Sample] = {}
    for row in iter_json(file):
        facts = {key: row[key] for key in ("question", "answer", "answer_index", "context") if row.get(key) is not None}
        choices = tuple(row["choices"]) if row.get("choices") else None
        sample = sample_of(Question(id=str(row.get("id", len(samples))), choices=choices, **facts))
        samples.setdefault(sample.prompt + sample.completion, sample)
    return list(samples.values())


def _drawn(samples: list[Sample], needed: int, seed: int, file: Path | None) -> list[Sample]:
    if len(samples) < needed:
        raise SystemExit(f"{file or 'quickstart'}: {len(samples)} samples, {needed} needed; ask for fewer")
    drawn = random.Random(seed).sample(samples, needed)
    return [sample.model_copy(update={"subtask": ""}) for sample in drawn]


def run(args: argparse.Namespace, load: Callable[[str], Target]) -> dict[str, Any]:
    """Measures all methods.

    Args:
        args: The command line.
        load: Loads a target in a dtype.
    """
    torch.set_num_threads(args.threads)
    pairs, questions, first = samples_of(args)
    wide = load("float32")
    checkpoints = wide.warm_up(first, steps=args.warm_up, seed=args.seed)
    reference = InfluenceScorer(wide, questions).score(pairs).total
    del wide
    target = load(args.dtype)
    target.checkpoints = checkpoints
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        makes: dict[str, Callable[[], Any]] = {
            "default": lambda: build_scorer(target, questions, Influence(), folder),
            "exact": lambda: InfluenceScorer(target, questions, folder=folder),
            "forward": lambda: ForwardScorer(target, questions, folder=folder, most_error=math.inf),
            "twin": lambda: TwinScorer(target, questions, folder=folder, most_error=math.inf),
            "exact, mixed": lambda: InfluenceScorer(target, questions, folder=folder, precision="mixed"),
            "forward, mixed": lambda: ForwardScorer(
                target, questions, folder=folder, precision="mixed", most_error=math.inf
            ),
            "exact, float32": lambda: InfluenceScorer(target, questions, folder=folder, precision="float32"),
        }
        for name in args.ways:
            began = time.perf_counter()
            scorer = makes[name]()
            own = scorer.numerical_error
            ready = time.perf_counter()
            total = scorer.score(pairs).total
            rows[name] = {
                "method": scorer.method,
                "measured_error": own,
                "error": relative_error(total, reference),
                "spearman": float(spearmanr(total, reference).statistic),
                "setup_seconds": ready - began,
                "score_seconds": time.perf_counter() - ready,
                "reason": scorer.choice.reason if scorer.choice else "",
            }
            print(name, rows[name], flush=True)
    facts = {key: str(getattr(args, key)) for key in ("model", "dtype", "device", "pairs", "questions", "seed")}
    return {"facts": facts, "ways": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Scores of a 16-bit target",
        "",
        ", ".join(f"{key} {value}" for key, value in result["facts"].items()),
        "",
        "| way | method | error it measures of itself | error against float32 | Spearman | setup, s | scoring, s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["ways"].items():
        columns = [name, row["method"], percent(row["measured_error"]), percent(row["error"]), f"{row['spearman']:.3f}"]
        lines.append(f"| {' | '.join(columns)} | {row['setup_seconds']:.1f} | {row['score_seconds']:.1f} |")
    if "default" in result["ways"]:
        row = result["ways"]["default"]
        verdict = "pass" if row["spearman"] >= LEAST else "MISS"
        lines += ["", f"The default: {row['reason']}.", ""]
        lines.append(f"- {verdict}: Spearman of the default with float32 {row['spearman']:.3f} (limit {LEAST:g})")
    return "\n".join([*lines, ""])


def main(words: Sequence[str] | None = None) -> None:
    """Runs, writes and prints the table."""
    args = arguments(words)

    def load(dtype: str) -> Target:
        spec = TargetSpec(name=args.model, dtype=dtype, device=args.device, max_length=args.max_length)
        return Target.load(spec, seed=args.seed)

    result = run(args, load)
    write_json(args.output / f"{args.name}.json", result)
    write_text(args.output / f"{args.name}.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
