r"""The fidelity study: do scores predict what training does? One command, resumable at every group of trainings.

    python benchmarks/fidelity.py --data DATA --pairs PAIRS --folder WORK
    python benchmarks/fidelity.py --data DATA --pairs PAIRS --folder WORK --report  # only the table
    python benchmarks/fidelity.py --data DATA --pairs PAIRS --folder WORK --name fidelity_50 \
        --horizons 1 12 50 --domains social_sciences --sources generated --seeds 0  # a longer training, one domain

DATA holds a folder per domain with `*validation.jsonl`, one question per line: id, question, answer, and choices with
answer_index where they apply. Questions are asked without a passage; those with long answers are left out. PAIRS holds
the output of `benchmarks/fidelity_pairs.py`: for each domain pairs of the loop's own generator, several per passage.

Each cell is a domain, a source of pairs and a seed. Each seed draws disjoint sets of questions: for the directions, for
the truth and, of human pairs, for warm-up and pool. Generated pairs of some passages are the pool, those of others the
warm-up. The truth is real training, see `optimsyn.study.fidelity.fidelity`. The figures of finished cells are in
--output, so that a study can resume without its work folder.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from optimsyn.base.files import iter_json, write_json, write_text
from optimsyn.data.records import Pair, Question
from optimsyn.recipe.recipe import TargetSpec
from optimsyn.study.fidelity.fidelity import FidelityData, Plan, Work, measure
from optimsyn.study.fidelity.report import FidelityReport
from optimsyn.study.fidelity.statistics import FidelityCell
from optimsyn.target.target import Target

RESULTS = Path(__file__).parent / "results"
DOMAINS = ("medicine", "law", "humanities", "finance", "social_sciences")
Source = Literal["generated", "human"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder per domain with *validation.jsonl")
    parser.add_argument("--pairs", type=Path, required=True, help="a file per domain with generated pairs")
    parser.add_argument("--folder", type=Path, required=True, help="warm-ups and trainings; kept between runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for cells, table, figures and picture")
    parser.add_argument("--target", default="embedded", help="the model")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--sources", nargs="+", choices=["generated", "human"], default=["generated", "human"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--passages", type=int, default=6, help="of a generated pool")
    parser.add_argument("--per-passage", type=int, default=4, help="pairs of each")
    parser.add_argument("--human", type=int, default=44, help="pool of human pairs")
    parser.add_argument("--questions", type=int, default=48, help="for the directions of a generated pool")
    parser.add_argument("--truth", type=int, default=24, help="questions for its truth")
    parser.add_argument("--human-questions", type=int, default=96, help="for the directions of a human pool")
    parser.add_argument("--human-truth", type=int, default=96, help="questions for its truth")
    parser.add_argument("--answer-words", type=int, default=8, help="questions with longer answers are left out")
    parser.add_argument("--question-words", type=int, default=40, help="and longer questions")
    parser.add_argument("--warm-up-steps", type=int, default=24)
    parser.add_argument("--warm-up-pairs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4, help="of warm-up and trainings")
    parser.add_argument("--horizons", nargs="+", type=int, default=[1, 12])
    parser.add_argument("--subsets", type=int, default=8, help="random halves for the LDS")
    parser.add_argument("--random", type=int, default=4, help="random quarters")
    parser.add_argument("--rows", type=int, default=32, help="samples of trainings side by side")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: torch decides")
    parser.add_argument("--name", default="fidelity", help="of the table, figures and picture in --output")
    parser.add_argument("--report", action="store_true", help="compute nothing; make the table of the finished cells")
    return parser.parse_args()


@dataclass(frozen=True)
class Sets:
    """The samples of a cell; no question is in two of the lists."""

    warm_up: list[Any]
    pool: list[Any]
    groups: list[str]
    companions: list[Any]
    questions: list[Question]
    truth: list[Question]


class Bench:
    """The cells of one study."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._began = time.monotonic()

    def cells(self) -> Iterator[tuple[str, Source, int]]:
        """In the order in which they are computed: every domain once before the next seed."""
        args = self.args
        for seed in args.seeds:
            for source in args.sources:
                for domain in args.domains:
                    yield domain, source, seed

    def file(self, domain: str, source: str, seed: int) -> Path:
        """The file of a cell's figures."""
        args = self.args
        horizons, (asked, truth) = "-".join(map(str, args.horizons)), self.sizes(source)
        name = f"{domain}-{source}-{seed}-{asked}-{truth}-{args.warm_up_steps}-{args.lr:g}-{horizons}"
        return Path(args.output) / "fidelity_cells" / f"{name}.json"

    def sizes(self, source: str) -> tuple[int, int]:
        """Number of questions for the directions, and for the truth.

        Parts of a pool differ less than single pairs, and fewer of them are trained on.
        """
        args = self.args
        return (args.questions, args.truth) if source == "generated" else (args.human_questions, args.human_truth)

    def run(self) -> None:
        """Computes all missing cells."""
        for domain, source, seed in self.cells():
            file = self.file(domain, source, seed)
            if not file.is_file():
                print(f"{domain}, {source}, seed {seed}", flush=True)
                self.cell(domain, source, seed).save(file)

    def cell(self, domain: str, source: Source, seed: int) -> FidelityCell:
        """One domain, source and seed."""
        args = self.args
        sets = self.generated(domain, seed) if source == "generated" else self.human(domain, seed)
        target = Target.load(TargetSpec(name=args.target), seed=seed)
        folder = args.folder / self.file(domain, source, seed).stem
        target.warm_up(
            sets.warm_up, steps=args.warm_up_steps, batch_size=4, lr=args.lr, seed=seed, folder=folder / "warm_up"
        )
        singles = source == "generated"
        plan = Plan(
            horizons=tuple(args.horizons),
            in_batch=singles,
            alone=singles,
            subsets=args.subsets if singles else 0,
            ends=Plan.ends[:2] if singles else Plan.ends[:1],
            random=args.random,
            lr=args.lr,
            seed=seed,
        )
        return measure(
            target,
            FidelityData(
                sets.pool,
                sets.questions,
                sets.truth,
                sets.companions,
                groups=sets.groups,
                drafts=sets.warm_up if singles else (),
                name=f"{domain}, {source}, seed {seed}",
                domain=domain,
            ),
            plan,
            work=Work(rows=args.rows, folder=folder, report=self.on_progress),
        )

    def generated(self, domain: str, seed: int) -> Sets:
        """Pool: pairs of some passages; warm-up and companions: pairs of other passages."""
        args = self.args
        generator = random.Random(f"{domain} generated {seed}")
        by_passage: dict[str, list[Pair]] = {}
        seen: set[tuple[str, str]] = set()
        for row in iter_json(args.pairs / f"{domain}.jsonl"):
            pair = Pair.model_validate(row)
            if (pair.question, pair.answer) not in seen:
                seen.add((pair.question, pair.answer))
                by_passage.setdefault(pair.passage_id, []).append(pair)
        several = sorted(key for key, pairs in by_passage.items() if len(pairs) > 1)
        several.sort(key=lambda key: -min(len(by_passage[key]), args.per_passage))
        best = several[: max(args.passages, sum(len(by_passage[key]) >= 3 for key in several))]
        chosen = generator.sample(best, min(args.passages, len(best)))
        pool = [pair for key in chosen for pair in by_passage[key][: args.per_passage]]
        others = [pairs[0] for key, pairs in sorted(by_passage.items()) if len(pairs) == 1]
        generator.shuffle(others)
        questions, truth = self.questions(domain, seed, "generated")
        return Sets(
            others[: args.warm_up_pairs],
            pool,
            [pair.passage_id for pair in pool],
            others[args.warm_up_pairs :],
            questions,
            truth,
        )

    def human(self, domain: str, seed: int) -> Sets:
        """Pool and warm-up: expert questions outside directions and truth."""
        args = self.args
        questions, truth = self.questions(domain, seed, "human")
        rest = self._shuffled(domain, seed)[len(questions) + len(truth) :]
        warm_up, pool = rest[: args.warm_up_pairs], rest[args.warm_up_pairs : args.warm_up_pairs + args.human]
        return Sets(warm_up, pool, [], [], questions, truth)

    def questions(self, domain: str, seed: int, source: str) -> tuple[list[Question], list[Question]]:
        """Questions for the directions, and for the truth."""
        asked, truth = self.sizes(source)
        questions = self._shuffled(domain, seed)
        # A small set of questions leaves room for warm-up and pool first.
        left = len(questions) - (self.args.warm_up_pairs + self.args.human if source == "human" else 0)
        if asked + truth > left:
            asked = truth = left // 2
        if asked < 8:
            raise SystemExit(f"{domain}: {len(questions)} short questions are too few")
        return questions[:asked], questions[asked : asked + truth]

    def _shuffled(self, domain: str, seed: int) -> list[Question]:
        args = self.args
        questions = []
        for file in sorted((args.data / domain).glob("validation.jsonl")):
            for row in iter_json(file):
                question = _question(row)
                words = len(question.answer.split()), len(question.question.split())
                if 0 < words[0] <= args.answer_words and 0 < words[1] <= args.question_words:
                    questions.append(question)
        random.Random(f"{domain} questions {seed}").shuffle(questions)
        return questions

    def on_progress(self, count: int, seconds: float) -> None:
        """Prints a line per group of trainings."""
        minutes = (time.monotonic() - self._began) / 60
        print(f"  {minutes:6.1f} min  {count} trainings in {seconds:.1f} s", flush=True)


def _question(row: dict[str, Any]) -> Question:
    kept = {key: row[key] for key in ("id", "question", "answer") if row.get(key) is not None}
    return Question(**kept)


def report(bench: Bench) -> None:
    """Writes --name as .json, .md and .png."""
    files = [bench.file(*cell) for cell in bench.cells()]
    cells = [FidelityCell.load(file) for file in files if file.is_file()]
    if not cells:
        raise SystemExit("no cell is finished yet")
    fidelity = FidelityReport.of(cells, resamples=bench.args.resamples)
    settings = {
        **{k: v for k, v in vars(bench.args).items() if not isinstance(v, Path) and k != "report"},
        "python": platform.python_version(),
        **{name: version(name) for name in ("optimsyn", "torch", "transformers", "peft", "bm25s")},
    }
    output: Path = bench.args.output / bench.args.name
    write_json(output.with_suffix(".json"), {"settings": settings, **fidelity.as_json()})
    write_text(output.with_suffix(".md"), fidelity.markdown())
    if fidelity.truths:
        fidelity.plot(output.with_suffix(".png"))
    print(fidelity.markdown())


def main() -> None:
    """Runs the cells and writes the table."""
    bench = Bench(arguments())
    if bench.args.threads:
        torch.set_num_threads(bench.args.threads)
    if not bench.args.report:
        bench.run()
    report(bench)


if __name__ == "__main__":
    main()
