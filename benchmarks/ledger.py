"""What a long run's records cost: opening the ledger, asking for feedback, asking for sums, at growing sizes.

    python benchmarks/ledger.py                          # this code; some minutes on one core, no network
    python benchmarks/ledger.py --before FOLDER          # and a checkout of an earlier commit, in turns

Judges stub pairs (scorer, writer and checks are stubs, so only the records are measured), then reads the files in fresh
processes. Memory is the peak resident size above that before anything was opened. Prints a table and writes
benchmarks/results/ledger.json and ledger.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "ledger.json"
SIZES = (1_000, 10_000, 100_000)
PASSAGES = 500
TEXT = (
    "Copper was mined in the hills above the river, and it was sold in the harbour for as long as anybody knows. " * 3
)
MEASURED = {
    "index_s": "first open of a ledger without index, s",
    "index_cpu_s": "the same, s of the processor",
    "index_mb": "the same, MB above rest",
    "open_s": "open, s",
    "open_cpu_s": "open, s of the processor",
    "open_mb": "open and judge a window, MB above rest",
    "judge_s": "judge the first new window of 32 after that, which reads the contents in once, s",
    "feedback_ms": "feedback with all given out, ms",
    "totals_us": "sums of all replies, µs",
}


def stub_reward(ledger: Path | None) -> Any:
    """A reward whose scorer, writer and checks cost nothing."""
    import torch

    from optimsyn.data.records import Pair
    from optimsyn.influence.factory import Scores
    from optimsyn.reward.reward import InfluenceReward, RewardOptions

    class Writer:
        fingerprint = "writer"

        class model:  # noqa: N801
            name = "stub"

        async def awrite(self, passage: Any, rubric: Any, *, seed: int, **_: Any) -> Pair:
            text = f"Which metal number {seed} was sold in the harbour? {TEXT}"
            return Pair(id=f"pair-{seed}", question=text, answer=f"copper {seed}", passage_id=passage.id, rubric=rubric)

    class Verdict:
        valid, failed, reasons = True, (), {}  # type: ignore[var-annotated]

    class Checks:
        fingerprint = "checks"

        def check(self, pair: Any, passage: Any) -> Verdict:
            return Verdict()

    class Scorer:
        fingerprint = "scorer"
        subtasks = ("years", "names")

        def score(self, pairs: Any) -> Scores:
            value = torch.tensor([float(int(pair.id[5:]) % 97) for pair in pairs])
            ones = torch.ones(len(pairs))
            return Scores(
                ids=tuple(pair.id for pair in pairs),
                subtasks=self.subtasks,
                total=value,
                by_subtask=torch.stack([value, value], 1),
                gradient_norm=ones,
                loss=ones,
                label_tokens=torch.ones(len(pairs), dtype=torch.int64),
            )

    return InfluenceReward(Scorer(), Writer(), Checks(), ledger=ledger, options=RewardOptions(source="benchmark"))


def requests(start: int, stop: int) -> list[Any]:
    """Requests number `start` to `stop`."""
    from optimsyn.data.records import Passage, Rubric
    from optimsyn.reward.reward import RubricRequest

    rubric = Rubric(
        question_type="fact", question_quality=TEXT, answer_quality=TEXT, alignment="fits", trainability="names a thing"
    )
    return [
        RubricRequest(
            passage=Passage(
                id=f"p{i % PASSAGES}", document_id="d", text=f"Passage {i % PASSAGES}", char_start=0, char_end=9
            ),
            kind="free",
            rubric=rubric,
            seed=i,
            variant="static",
        )
        for i in range(start, stop)
    ]


def build(folder: Path, size: int) -> None:
    """Writes a ledger (with sums and index) and a reply cache of `size` rows each."""
    import asyncio
    import sqlite3

    from optimsyn.llm.replies import Reply, ReplyCache

    reward = stub_reward(folder / "rewards.jsonl")
    asyncio.run(reward.judge(requests(0, size)))
    cache = ReplyCache(folder / "replies.sqlite")
    reply = Reply(text=TEXT, input_tokens=500, output_tokens=100, cost_usd=0.001).model_dump_json()
    cache.close()
    with sqlite3.connect(folder / "replies.sqlite") as db:
        rows = ((f"k{i}", reply, json.dumps({"messages": TEXT}), "m", 500, 100, 0.001, 0.0) for i in range(size))
        db.executemany("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def measure(folder: Path, size: int, task: str) -> None:
    """One process's measurements, as JSON on standard output."""
    import asyncio

    import optimsyn.influence.factory
    import optimsyn.reward.reward  # noqa: F401
    from optimsyn.runs.peak_memory import peak_bytes, reset_peak

    # Every process of a run has loaded these modules before.
    asyncio.run(stub_reward(None).judge(requests(0, 64)))
    figures: dict[str, float] = {}
    reset_peak()
    rest = peak_bytes()
    begun, busy = time.perf_counter(), time.process_time()
    reward = stub_reward(folder / "rewards.jsonl")
    figures |= {"open_s": time.perf_counter() - begun, "open_cpu_s": time.process_time() - busy}
    if task == "open":
        begun = time.perf_counter()
        asyncio.run(reward.judge(requests(size, size + 32)))
        figures["judge_s"] = time.perf_counter() - begun
    figures["open_mb"] = (peak_bytes() - rest) / 1e6
    if task == "feedback":
        judged = asyncio.run(reward.judge(requests(0, size)))
        times = []
        for row in judged[:: max(1, size // 20)]:
            begun = time.perf_counter()
            reward.feedback(row)
            times.append(1e3 * (time.perf_counter() - begun))
        figures = {"feedback_ms": statistics.median(times)}
        from optimsyn.llm.replies import ReplyCache

        cache = ReplyCache(folder / "replies.sqlite")
        times = []
        for _ in range(20):
            begun = time.perf_counter()
            assert cache.totals().replies == size
            times.append(1e6 * (time.perf_counter() - begun))
        figures["totals_us"] = statistics.median(times)
    sys.stdout.write(json.dumps(figures) + "\n")


def child(tree: Path, folder: Path, size: int, task: str) -> dict[str, float]:
    """`measure` with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", task, "--folder", str(folder), "--rows", str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(trees: dict[str, Path], sizes: list[int], repeats: int) -> dict[str, Any]:
    """Medians by size, code and figure; the codes take turns."""
    table: dict[str, Any] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            built = Path(scratch) / "made"
            built.mkdir()
            child(trees["now"], built, size, "build")
            rows: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
            for _ in range(repeats):
                for name, tree in trees.items():
                    copy = Path(scratch) / "copy"
                    shutil.copytree(built, copy)
                    for file in copy.glob("rewards.index*"):
                        file.unlink()
                    first = child(tree, copy, size, "first")
                    figures = child(tree, copy, size, "open") | child(tree, copy, size, "feedback")
                    figures |= {f"index_{key.removeprefix('open_')}": value for key, value in first.items()}
                    for key, value in figures.items():
                        rows[name].setdefault(key, []).append(value)
                    shutil.rmtree(copy)
            table[str(size)] = {
                name: {key: round(statistics.median(values), 3) for key, values in sorted(figures_of_tree.items())}
                for name, figures_of_tree in rows.items()
            } | {"ledger_mb": round((built / "rewards.jsonl").stat().st_size / 1e6, 1)}
            print(size, json.dumps(table[str(size)]), flush=True)
    return table


def markdown(table: dict[str, Any], names: list[str]) -> str:
    """The table."""
    heads = [f"{int(size):,} rows, {name}" for size in table for name in names]
    lines = ["| figure | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for key, label in MEASURED.items():
        cells = [f"{row[name][key]:g}" for row in table.values() for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit (git worktree add FOLDER COMMIT)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--child", choices=["build", "first", "open", "feedback"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "build":
        build(args.folder, args.rows)
        sys.stdout.write("{}\n")
    elif args.child:
        measure(args.folder, args.rows, args.child)
    else:
        trees = {"now": ROOT} | ({"before": args.before.resolve()} if args.before else {})
        table = compare(trees, args.sizes, args.repeats)
        print(markdown(table, list(trees)))
        if not args.no_write:
            facts = {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
            RESULT.write_text(json.dumps({"machine": facts, "rows": table}, indent=2) + "\n", encoding="utf-8")
            RESULT.with_suffix(".md").write_text(markdown(table, list(trees)), encoding="utf-8")


if __name__ == "__main__":
    main()
