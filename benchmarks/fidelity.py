"""The fidelity table: do influence scores foretell what training does? One command, resumable at every counterfactual.

    python benchmarks/fidelity.py --data DATA --folder WORK
    python benchmarks/fidelity.py --data DATA --folder WORK --worker 0/2      # and 1/2 beside it: shares the cells
    python benchmarks/fidelity.py --data DATA --folder WORK --report          # only the table, of what there is

DATA holds a folder a domain with `*validation.jsonl`, a question a line: id, question, answer, and choices with
answer_index where they apply. Questions are asked without a passage; those longer than --max-tokens are left out, and
files of one domain give as equal shares as their sizes allow. For each domain and seed, four sets that share no
question are drawn: the pool, the validation questions, the fixed batch of the in-batch counterfactual, and the
warm-up's samples.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import random
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from optimsyn.data.jsonl import iter_json, write_json, write_text
from optimsyn.data.records import Question
from optimsyn.errors import ModelError
from optimsyn.influence.fidelity import TRUTHS, Plan, Truth, measure
from optimsyn.influence.fidelity_report import FidelityReport
from optimsyn.influence.fidelity_statistics import FidelityCell
from optimsyn.models.target import Target
from optimsyn.recipe import TargetSpec

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder a domain with *validation.jsonl")
    parser.add_argument("--folder", type=Path, required=True, help="gradients, ledgers and cells; kept between runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where table, figures and picture go")
    parser.add_argument("--target", default="embedded", help="the model")
    parser.add_argument("--domains", nargs="+", default=["humanities", "finance", "medicine"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=64, help="pool of a cell")
    parser.add_argument("--questions", type=int, default=12, help="validation questions of a cell")
    parser.add_argument("--max-tokens", type=int, default=48, help="longer questions are left out")
    parser.add_argument("--pairs", type=Path, default=None, help="JSON lines of synthesized pairs: half of each pool")
    parser.add_argument("--warm-up-steps", type=int, default=24)
    parser.add_argument("--subsets", type=int, default=16, help="random halves for the LDS")
    parser.add_argument("--subset-batch", type=int, default=16)
    parser.add_argument("--top-random", type=int, default=3)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--truths", nargs="+", choices=TRUTHS, default=list(TRUTHS))
    parser.add_argument("--worker", default="0/1", help="I/N: this process does cells I, I+N, ... and writes no table")
    parser.add_argument("--report", action="store_true", help="compute nothing; make the table of the finished cells")
    return parser.parse_args()


class Bench:
    """The cells of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.plan = Plan(subsets=args.subsets, subset_batch=args.subset_batch, top_random=args.top_random)
        self._target: tuple[int, Target, dict[str, torch.Tensor]] | None = None
        self._questions: dict[str, list[list[Question]]] = {}
        self._began = time.monotonic()
        self._done, self._seconds = 0, 0.0
        self._left = 0

    def run(self) -> None:
        """All phases of this worker's cells: every cell's in-batch truth first, then the next truth, ..."""
        args = self.args
        index, workers = (int(part) for part in args.worker.split("/"))
        cells = [(domain, seed) for seed in args.seeds for domain in args.domains][index::workers]
        for phase in range(1, len(args.truths) + 1):
            for place, (domain, seed) in enumerate(cells):
                print(f"{args.truths[phase - 1]}: {domain}, seed {seed} ({place + 1} of {len(cells)})", flush=True)
                self._expect(args.truths[phase - 1])
                self.cell(domain, seed, args.truths[:phase])

    def cell(self, domain: str, seed: int, truths: Sequence[Truth]) -> None:
        """One domain and seed, up to some truths."""
        args = self.args
        target = self.target(seed)
        sets = self.sets(domain, seed, target)
        folder = self.folder(domain, seed)
        target.warm_up(sets["warm_up"], steps=args.warm_up_steps, batch_size=4, seed=seed, folder=folder / "warm_up")
        measure(
            target,
            sets["pool"],
            sets["questions"],
            name=f"{domain}, seed {seed}",
            truths=truths,
            plan=self.plan,
            companions=sets["companions"],
            seed=seed,
            folder=folder,
            on_result=self.progress,
        ).save(folder / "cell.json")

    def folder(self, domain: str, seed: int) -> Path:
        """Where a cell is kept."""
        args = self.args
        pairs = hashlib.sha256(args.pairs.read_bytes()).hexdigest()[:8] if args.pairs else "questions"
        name = f"{domain}-{seed}-{args.samples}-{args.questions}-{args.max_tokens}-{args.warm_up_steps}-{pairs}"
        return Path(self.args.folder) / name

    def target(self, seed: int) -> Target:
        """A model with a fresh adapter of this seed; the last one stays in memory."""
        if self._target is None or self._target[0] != seed:
            self._target = None
            target = Target.load(TargetSpec(name=self.args.target), seed=seed)
            initial = {name: parameter.detach().clone() for name, parameter in target.parameters.items()}
            self._target = (seed, target, initial)
        _, target, initial = self._target
        with torch.no_grad():
            for name, parameter in target.parameters.items():
                parameter.copy_(initial[name])
        return target

    def sets(self, domain: str, seed: int, target: Target) -> dict[str, list[Question]]:
        """The four sets of a cell."""
        args = self.args
        generator = random.Random(f"{domain} {seed}")
        pairs: list[Question] = []
        if args.pairs:
            rows = [_question(row) for row in iter_json(args.pairs) if row.get("domain", domain) == domain]
            pairs = [q for q in rows if self._is_short(q, target)]
            generator.shuffle(pairs)
            pairs = pairs[: args.samples // 2]
        sizes = {
            "questions": args.questions,
            "pool": args.samples - len(pairs),
            "companions": self.plan.batch_size,
            "warm_up": 4 * args.warm_up_steps,
        }
        files = [generator.sample(kept, len(kept)) for kept in self._read(domain, target)]
        in_turns = [q for turn in zip_longest(*files) for q in turn if q is not None]
        needed = sum(sizes.values())
        if len(in_turns) < needed:
            raise SystemExit(f"{domain}: {len(in_turns)} short questions are fewer than the {needed} needed")
        questions = generator.sample(in_turns[:needed], needed)
        found, start = {}, 0
        for name, size in sizes.items():
            found[name] = questions[start : start + size]
            start += size
        found["pool"] += pairs
        return found

    def _read(self, domain: str, target: Target) -> list[list[Question]]:
        """The short questions of each file of a domain, each question text once."""
        if domain not in self._questions:
            files, seen = [], set()
            for file in sorted((self.args.data / domain).glob("*validation.jsonl")):
                kept = []
                for row in iter_json(file):
                    question = _question(row)
                    text = question.question.strip().lower()
                    if text not in seen and self._is_short(question, target):
                        seen.add(text)
                        kept.append(question)
                files.append(kept)
            if not any(files):
                raise SystemExit(f"{self.args.data / domain}: no *validation.jsonl with short questions")
            self._questions[domain] = files
        return self._questions[domain]

    def _is_short(self, question: Question, target: Target) -> bool:
        try:
            return len(target.encode(question).input_ids) <= self.args.max_tokens
        except ModelError:
            # Longer than the target takes at all.
            return False

    def progress(self, key: str, seconds: float) -> None:
        """Prints every eighth result with the time that this worker's cell and phase still take."""
        self._done += 1
        self._seconds += seconds
        self._left = max(0, self._left - 1)
        if self._done % 8 == 0:
            mean = self._seconds / self._done
            minutes = (time.monotonic() - self._began) / 60
            eta = self._left * mean / 60
            print(f"  {minutes:6.1f} min  {key}: {seconds:.1f} s, mean {mean:.1f} s, phase {eta:.1f} min", flush=True)

    def _expect(self, truth: str) -> None:
        plan, samples = self.plan, self.args.samples
        units = {"in_batch": samples + 2, "lone": samples, "subsets": plan.subsets}
        self._left = units.get(truth, plan.top_random + 2 * len(plan.top_scores))
        self._done, self._seconds = 0, 0.0


def _question(row: dict[str, Any]) -> Question:
    kept = {key: row[key] for key in ("id", "question", "answer", "answer_index", "group") if row.get(key) is not None}
    choices = tuple(row["choices"]) if row.get("choices") else None
    return Question(**kept, choices=choices)


def finished(bench: Bench) -> Iterator[FidelityCell]:
    """The cells that exist."""
    for domain in bench.args.domains:
        for seed in bench.args.seeds:
            file = bench.folder(domain, seed) / "cell.json"
            if file.is_file():
                yield FidelityCell.load(file)


def report(bench: Bench) -> None:
    """Writes fidelity.json, fidelity.md and fidelity.png."""
    cells = list(finished(bench))
    if not cells:
        raise SystemExit("no cell is finished yet")
    made = FidelityReport.of(cells, resamples=bench.args.resamples)
    settings = {
        **{k: v for k, v in vars(bench.args).items() if not isinstance(v, Path) and k not in ("worker", "report")},
        "python": platform.python_version(),
        **{name: version(name) for name in ("optimsyn", "torch", "transformers", "peft", "bm25s")},
    }
    output: Path = bench.args.output
    write_json(output / "fidelity.json", {"settings": settings, **made.as_json()})
    write_text(output / "fidelity.md", made.markdown())
    made.plot(output / "fidelity.png")
    print(made.markdown())


def main() -> None:
    """Runs the cells and writes the table."""
    bench = Bench(arguments())
    if not bench.args.report:
        bench.run()
    if bench.args.report or bench.args.worker.endswith("/1"):
        report(bench)


if __name__ == "__main__":
    main()
