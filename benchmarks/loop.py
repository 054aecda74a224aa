"""Judged pairs a minute of the optimising stages, and how busy their models are; and the cost of many requests.

    python benchmarks/loop.py                        # this code, and the same loop strictly serial, in turns
    python benchmarks/loop.py --before FOLDER        # and a checkout of an earlier commit
    python benchmarks/loop.py --device cuda          # on a GPU

Each checkout warms the embedded target up once on the quickstart's texts, untimed. Then each side runs the stages
optimize_prompt, train_policy and synthesize on a copy of that run, in a process of its own. Serial means: all rubrics,
then all pairs, then all scores, each with the recipe's concurrency. Then stub models that take a fixed time show what
the pipeline alone gains, and stub models that take none how time and memory of the loop's own work grow with the number
of requests. Prints tables, writes benchmarks/results/loop.json and loop.md.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "loop.json"
STAGES = ("optimize_prompt", "train_policy", "synthesize")
# `writing` is the rubric model or the generator: one server where both are the embedded model.
PARTS = ("generator", "rubric", "writing", "target")
SIZES = (1_000, 3_000, 10_000)
_GPU_PAUSE_S = 0.2
# Of one request or one score.
_PACE_S = {"rubric": 0.1, "generator": 0.2, "target": 0.02}


def recipe(args: argparse.Namespace) -> Any:
    """The quickstart, in the size and on the device that the command line asks for."""
    from optimsyn.recipe.changes import changed
    from optimsyn.recipe.recipe import Recipe

    changes: dict[str, Any] = {
        "warm_up.pairs": args.drafts,
        "warm_up.steps": 8,
        "reward.look.pairs": 0,
        "optimizers.prompt.metric_calls": args.searched,
        "optimizers.policy.steps": args.steps,
        "optimizers.policy.passages_per_step": args.groups,
        "synthesis.pairs": args.pairs,
    }
    for role in ("generator", "rubric"):
        changes[f"models.{role}.concurrency"] = args.concurrency
    if args.device != "cpu":
        changes |= {f"models.{role}.device": args.device for role in ("generator", "rubric", "target")}
    if args.generator == "local":
        from optimsyn.llm.embedded.server import weights_dir

        changes["models.generator.name"] = str(weights_dir())
    return changed(Recipe.load(ROOT / "recipes" / "quickstart.yaml"), changes)


def warm_up(args: argparse.Namespace) -> None:
    """Prepares a run and warms its target up."""
    from optimsyn.runs.folder import Run
    from optimsyn.stages.own import run_stage

    run = Run.open(recipe(args), args.folder)
    for stage in ("prepare", "warm_up"):
        run_stage(run, stage)
    print("{}")


def loop(args: argparse.Namespace) -> None:
    """Runs the optimising stages; their times, judged pairs and loads as JSON."""
    from optimsyn.llm.embedded.server import shared_server
    from optimsyn.runs.folder import Run
    from optimsyn.stages.own import run_stage

    run = Run.open(recipe(args), args.folder)
    # A server that starts, and imports, are not the loop.
    shared_server()
    meters = measured()
    if args.serial:
        make_serial()
    rows: dict[str, Any] = {}
    for stage in STAGES:
        before, bought = ledger_rows(run.folder), run.bought().replies
        meter, begun, busy = meters(), time.perf_counter(), time.process_time()
        with gpu_use(args.device) as used:
            run_stage(run, stage)
        rows[stage] = {
            "seconds": time.perf_counter() - begun,
            "cpu_seconds": time.process_time() - busy,
            "judged": ledger_rows(run.folder) - before,
            "replies": run.bought().replies - bought,
            "loads": {name: vars(load) for name, load in meter.loads().items()},
            "gpu": statistics.mean(used) if used else None,
        }
    print(json.dumps(rows))


def ledger_rows(folder: Path) -> int:
    """Judged pairs so far."""
    path = folder / "rewards.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def measured() -> Callable[[], Any]:
    """Lets every model of a checkout report its work to a meter; returns a function that begins a new one."""
    # From this file's own checkout, also for an earlier commit that has none.
    place = importlib.util.spec_from_file_location("loop_meter", ROOT / "optimsyn" / "base" / "meter.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules["loop_meter"] = module
    place.loader.exec_module(module)
    current: list[Any] = [module.Meter()]

    def begin() -> Any:
        current[0] = module.Meter()
        return current[0]

    from optimsyn.llm.hosted.litellm_model import LiteLLMModel
    from optimsyn.llm.local.model import LocalModel
    from optimsyn.optimize.shared_prompt import SharedPromptTrainer

    for kind in (LiteLLMModel, LocalModel):

        async def request(self: Any, call: Any, inner: Any = kind._request) -> Any:
            role = "generator" if self.field == "models.generator" else "rubric"
            with current[0].at_work(role), current[0].at_work("writing"):
                return await inner(self, call)

        kind._request = request  # type: ignore[method-assign]
    reward: Any = importlib.import_module("optimsyn.reward.reward")
    score = reward.score_fields

    def score_fields(*given: Any) -> Any:
        with current[0].at_work("target"):
            return score(*given)

    reward.score_fields = score_fields

    def wrapped(inner: Any, how: str) -> Any:
        def method(self: Any, *given: Any) -> Any:
            with getattr(current[0], how)("rubric"), getattr(current[0], how)("writing"):
                return inner(self, *given)

        return method

    for name, how in (("training_step", "at_work"), ("_calculate_rewards", "waiting")):
        setattr(SharedPromptTrainer, name, wrapped(getattr(SharedPromptTrainer, name), how))
    return begin


def make_serial() -> None:
    """Makes the loop strictly serial: one kind of work at a time."""
    from optimsyn.base.errors import OptimsynError
    from optimsyn.reward.reward import InfluenceReward

    inner = InfluenceReward.judge

    async def judge(self: Any, requests: Any, ask: Any = None) -> Any:
        if ask is not None:
            requests = await asyncio.gather(*map(ask, requests))

        async def write(request: Any) -> None:
            try:
                await self.drafter.write(request)
            except OptimsynError:
                return  # judging meets it again

        # The reply cache then answers the reward, which has only scores left to do.
        await asyncio.gather(*map(write, requests))
        return await inner(self, requests)

    InfluenceReward.judge = judge  # type: ignore[method-assign]
    InfluenceReward.write_ahead = lambda self, requests: None  # type: ignore[method-assign]


@contextmanager
def gpu_use(device: str) -> Iterator[list[float]]:
    """Samples the GPU's utilisation, as a share, while the block runs; empty without a GPU."""
    used: list[float] = []
    if not device.startswith("cuda"):
        yield used
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_GPU_PAUSE_S):
            answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
            used.extend(int(number) / 100 for number in answer[:1])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield used
    finally:
        ended.set()
        thread.join()


def grow(args: argparse.Namespace) -> None:
    """Judges `args.rows` stub requests, with rubrics to write; seconds and peak memory as JSON."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from ledger import requests, stub_reward

    from optimsyn.runs.peak_memory import peak_bytes, reset_peak

    asyncio.run(stub_reward(None).judge(requests(0, 64)))
    reward = stub_reward(args.folder / "rewards.jsonl")
    rubric = requests(0, 1)[0].rubric
    blanks = [request.model_copy(update={"rubric": None}) for request in requests(0, args.rows)]

    async def ask(request: Any) -> Any:
        await asyncio.sleep(0)
        return request.under(rubric)

    async def judge() -> int:
        if hasattr(reward, "stream"):
            return len([None async for _ in reward.stream(blanks, ask)])
        asked = await asyncio.gather(*map(ask, blanks))
        return len(await reward.judge(asked))

    reset_peak()
    rest = peak_bytes()
    begun, busy = time.perf_counter(), time.process_time()
    assert asyncio.run(judge()) == args.rows
    seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "mb": (peak_bytes() - rest) / 1e6}))


def pace(args: argparse.Namespace) -> None:
    """Judges requests with stub models that take a fixed time, as services elsewhere do; the loop's figures as JSON."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from ledger import requests, stub_reward

    meters = measured()
    if args.serial:
        make_serial()
    reward = stub_reward(args.folder / "rewards.jsonl")
    rubric = requests(0, 1)[0].rubric
    blanks = [request.model_copy(update={"rubric": None}) for request in requests(0, args.rows)]
    meter = meters()
    places = {role: asyncio.Semaphore(args.concurrency) for role in ("rubric", "generator")}
    replies: dict[int, Any] = {}
    write, score = reward.pair_writer.awrite, reward.scorer.score

    async def take(role: str) -> None:
        async with places[role]:
            with meter.at_work(role), meter.at_work("writing"):
                await asyncio.sleep(_PACE_S[role])

    async def ask(request: Any) -> Any:
        await take("rubric")
        return request.under(rubric)

    async def paced_write(*given: Any, seed: int, **more: Any) -> Any:
        if seed not in replies:  # as a reply cache does
            await take("generator")
            replies[seed] = await write(*given, seed=seed, **more)
        return replies[seed]

    def paced_score(pairs: Any) -> Any:
        time.sleep(_PACE_S["target"] * len(pairs))
        return score(pairs)

    reward.pair_writer.awrite, reward.scorer.score = paced_write, paced_score

    async def judge() -> int:
        if hasattr(reward, "stream"):
            return len(await reward.judge(blanks, ask))
        return len(await reward.judge(await asyncio.gather(*map(ask, blanks))))

    begun = time.perf_counter()
    judged = asyncio.run(judge())
    seconds = time.perf_counter() - begun
    loads = {name: vars(load) for name, load in meter.loads().items()}
    print(json.dumps({"paced": {"seconds": seconds, "judged": judged, "loads": loads, "gpu": None}}))


def child(tree: Path, task: str, args: argparse.Namespace, folder: Path, *more: str) -> dict[str, Any]:
    """A task with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--child", task, "--folder", str(folder), *more]
    for name in ("device", "generator", "drafts", "searched", "steps", "groups", "pairs", "concurrency"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(trees: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """Every turn of every side: the stages' figures."""
    sides = {"now": ("now", ()), "serial": ("now", ("--serial",))} | ({"before": ("before", ())} if args.before else {})
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as scratch:
        for name, tree in trees.items():
            child(tree, "warm_up", args, Path(scratch) / name)
        for turn in range(args.turns):
            for side, (name, more) in sides.items():
                copy = Path(scratch) / f"{side}-{turn}"
                shutil.copytree(Path(scratch) / name, copy)
                turns[side].append(child(trees[name], "loop", args, copy, *more))
                print(side, json.dumps(turns[side][-1]), flush=True)
                shutil.rmtree(copy)
    return {side: {"turns": rows, **{stage: over(rows, [stage]) for stage in STAGES}, "all": over(rows, list(STAGES))}
            for side, rows in turns.items()}  # fmt: skip


def over(turns: list[dict[str, Any]], stages: list[str]) -> dict[str, Any]:
    """Figures of some stages over all turns."""
    rows = [turn[stage] for turn in turns for stage in stages]
    seconds, judged = sum(row["seconds"] for row in rows), sum(row["judged"] for row in rows)
    loads = {
        f"{part} {kind}": sum(row["loads"].get(part, {}).get(kind, 0.0) * row["seconds"] for row in rows) / seconds
        for part in PARTS
        for kind in ("busy", "mean")
    }
    used = [(row["gpu"], row["seconds"]) for row in rows if row["gpu"] is not None]
    gpu = sum(share * time for share, time in used) / sum(time for _, time in used) if used else None
    rate = 60 * judged / seconds
    figures = {"judged": judged, "seconds": seconds, "judged a minute": rate, **loads, "GPU busy": gpu}
    return {name: value if value is None else round(value, 3) for name, value in figures.items()}


def paced(trees: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """Figures of every side with models that take a fixed time."""
    sides = {"now": ("now", ()), "serial": ("now", ("--serial",))} | ({"before": ("before", ())} if args.before else {})
    result = {}
    for side, (name, more) in sides.items():
        with tempfile.TemporaryDirectory() as scratch:
            row = child(trees[name], "pace", args, Path(scratch), "--rows", "400", *more)
        result[side] = over([row], ["paced"])
        print(side, json.dumps(result[side]), flush=True)
    return result


def growth(trees: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of each checkout at each number of requests; the checkouts take turns."""
    table: dict[str, Any] = {}
    for size in args.sizes:
        table[str(size)] = {}
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as scratch:
                row = child(tree, "grow", args, Path(scratch), "--rows", str(size))
            table[str(size)][name] = {key: round(value, 3) for key, value in row.items()}
        print(size, json.dumps(table[str(size)]), flush=True)
    return table


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    sides = list(result["loop"])
    lines = []
    if sides:
        lines += [f"On {result['machine']}; means over {result['turns']} turns.", ""]
        lines += ["| stages | figure | " + " | ".join(sides) + " |", "|---|---|" + "---:|" * len(sides)]
    for stage in ("all", *STAGES) if sides else ():
        for figure in result["loop"][sides[0]][stage]:
            values = [result["loop"][side][stage][figure] for side in sides]
            if any(value is not None for value in values):
                cells = " | ".join("" if value is None else f"{value:.3g}" for value in values)
                lines.append(f"| {stage} | {figure} | {cells} |")
    sides = list(result["paced"])
    if sides:
        pace = ", ".join(f"{role} {seconds:g} s" for role, seconds in _PACE_S.items())
        lines += ["", f"Models that take a fixed time ({pace}; four requests at once):", ""]
        lines += ["| figure | " + " | ".join(sides) + " |", "|---|" + "---:|" * len(sides)]
        for figure, value in result["paced"][sides[0]].items():
            if value is not None:
                lines.append(f"| {figure} | " + " | ".join(f"{result['paced'][s][figure]:.3g}" for s in sides) + " |")
    lines += ["", "| requests to stub models | code | seconds | seconds of the processor | MB above rest |"]
    lines.append("|---:|---|---:|---:|---:|")
    for size, codes in result["growth"].items():
        for name, row in codes.items():
            lines.append(
                f"| {int(size):,} | {name} | {row['seconds']:.3g} | {row['cpu_seconds']:.3g} | {row['mb']:.1f} |"
            )
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit (git worktree add FOLDER COMMIT)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--generator", choices=("embedded", "local"), default="embedded")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--drafts", type=int, default=8, help="first drafts of the warm-up")
    parser.add_argument("--searched", type=int, default=14, help="judged pairs of the search for a guiding text")
    parser.add_argument("--steps", type=int, default=2, help="steps of the policy's training")
    parser.add_argument("--groups", type=int, default=2, help="passages of a step, four rubrics each")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of each variant")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="requests to stub models")
    parser.add_argument("--only", choices=("loop", "growth"), help="one of the two parts")
    parser.add_argument("--serial", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--child", choices=("warm_up", "loop", "pace", "grow"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        {"warm_up": warm_up, "loop": loop, "pace": pace, "grow": grow}[args.child](args)
        return
    trees = {"now": ROOT} | ({"before": args.before.resolve()} if args.before else {})
    machine = f"{os.cpu_count()} cores ({platform.machine()}), {args.device}, generator {args.generator}"
    result: dict[str, Any] = {"machine": machine, "turns": args.turns, "python": platform.python_version()}
    result["loop"] = {} if args.only == "growth" else compare(trees, args)
    result["paced"] = {} if args.only == "loop" else paced(trees, args)
    result["growth"] = {} if args.only == "loop" else growth(trees, args)
    print(markdown(result))
    if not args.no_write:
        path = RESULT if args.device == "cpu" else RESULT.with_name("loop_gpu.json")
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
