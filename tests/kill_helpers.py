"""A whole small run with every stage on, GRPO too, that is killed or finds its disk full at random moments."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from optimsyn.runs.manifest import STAGES
from tests.llm_helpers import KEY, Answer, Service, said, save_tiny_model, service
from tests.optimize_helpers import tiny_policy
from tests.stages_helpers import NAMES, sentence

KEY_VARIABLE = "KILL_TEST_KEY"
DELAY_S = 0.1
ASKED = [
    "Which metal came from the mines of {}?",
    "What did the miners of {} dig for?",
    "What was sold in the harbour of {}?",
    "Name the metal that made {} rich.",
]
# Files that say what a run came to; of JSON lines without what a clock says.
RESULTS = (
    "dataset/*.parquet",
    "dataset/*.jsonl",
    "evaluation.json",
    "evaluate/*.jsonl",
    "fine_tune/*/history.jsonl",
    "fine_tune/*/adapter/*.safetensors",
    "optimize_prompt/guiding_text.txt",
    "optimize_prompt/history.jsonl",
    "prepare/*.jsonl",
    "synthesize/*.jsonl",
    "train_policy/history.jsonl",
    "train_policy/adapter/*.safetensors",
    "warm_up/influence.json",
    "warm_up/pairs.jsonl",
    "warm_up/checkpoints/**/*.safetensors",
)
_CLOCK = re.compile(rb'"(seconds|step_time|runtime)": [0-9.e-]+,? ?')


def write_recipe(folder: Path, base: str) -> Path:
    """The recipe and all that it names; `base` is the address of the service."""
    documents = [
        {"id": name, "title": name, "text": f"{sentence(i)}. Nobody knows why the miners of {name} left the hills."}
        for i, name in enumerate(NAMES)
    ]
    questions = [
        {
            "id": f"q{i}",
            "question": f"In which year, according to its chronicle, did {name} open its first shaft?",
            "answer": str(1200 + 37 * i),
            "group": name,
            "subtask": "dates" if i % 2 else "years",
        }
        for i, name in enumerate(NAMES)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("documents", documents), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target, policy = save_tiny_model(folder / "tiny"), tiny_policy(folder / "policy")
    spec = {"name": "openai/served-model", "api_base": base, "api_key_env": KEY_VARIABLE, "retries": 0}
    recipe = {
        "name": "mines",
        "seed": 5,
        "documents": {"source": str(folder / "documents.jsonl"), "min_words": 5},
        "questions": {"validation": str(folder / "questions.jsonl")},
        "guiding_text": "Ask which metal a city mined, so that one word answers it.",
        "models": {
            "generator": {**spec, "concurrency": 4},
            "rubric": {"name": str(policy), "device": "cpu", "max_tokens": 16},
            "target": {"name": str(target), "max_length": 256, "device": "cpu"},
        },
        "warm_up": {"pairs": 12, "steps": 6, "batch_size": 2},
        "reward": {"look": {"subsets": 2, "steps": 2}},
        "optimizers": {
            "prompt": {"metric_calls": 16, "passages": 4, "minibatch": 2},
            "policy": {"steps": 4, "group_size": 4, "passages_per_step": 2, "max_tokens": 16, "lr": 1e-2},
        },
        "synthesis": {"pairs": 8, "oversample": 1.5},
        "fine_tune": {"steps": 12, "batch_size": 2},
        "evaluation": {"max_new_tokens": 8, "bootstrap": 200},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def answer(number: int, request: dict[str, Any]) -> Answer:
    """A pair about the last fact of the prompt, in words that follow from the prompt and the seed."""
    text = request["messages"][-1]["content"]
    name, metal = re.findall(r"The city of (\w+) mined (\w+)", text)[-1]
    mixed = hashlib.sha256(f"{text} {request.get('seed', 0)}".encode()).digest()
    pair = {"quote": "", "question": ASKED[mixed[0] % len(ASKED)].format(name), "answer": metal}
    return replace(said(json.dumps(pair)), delay_s=DELAY_S)


@dataclass
class Trial:
    """What one disturbed run did.

    Attributes:
        moments: Stage and seconds into it of each disturbance.
        again: Requests that were sent more than once although their reply had come before the process was ended.
        in_hand: Requests whose reply was under way or in hand at a kill, so that they had to be sent again.
        differ: Result files that are not those of an undisturbed run.
        told: The error that the process ended with at each full disk.
    """

    moments: list[tuple[str, float]] = field(default_factory=list)
    again: int = 0
    in_hand: int = 0
    differ: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def identity(request: dict[str, Any]) -> str:
    """What makes two requests of one run the same."""
    return json.dumps([request["messages"], request.get("seed")], sort_keys=True)


def kept(root: Path) -> set[str]:
    """The requests whose replies are on the disk, of all runs under a root."""
    found: set[str] = set()
    for file in root.glob("*/replies.sqlite"):
        with contextlib.closing(sqlite3.connect(file)) as db:
            found |= {identity(json.loads(row[0])) for row in db.execute("SELECT request FROM replies")}
    return found


class Repeats:
    """Tells requests that had to be sent again after a kill from those whose replies had been kept.

    Args:
        served: The service; what it was asked before counts for nothing.
    """

    def __init__(self, served: Service) -> None:
        self._served = served
        self._first = len(served.requests)
        self._kills: list[tuple[int, set[str]]] = []

    def killed(self, root: Path) -> None:
        """Notes what is on the disk, when all processes of a run have been killed."""
        time.sleep(0.2)
        while self._served.busy:
            time.sleep(0.02)
        self._kills.append((len(self._served.requests), kept(root)))

    def counts(self, without: str = "") -> tuple[int, int]:
        """Requests that were sent again although nothing was lost, and those whose reply a kill took along.

        Those to the model `without` do not count.
        """
        again = in_hand = 0
        last: dict[str, int] = {}
        for number, request in enumerate(self._served.requests[self._first :], self._first):
            name = identity(request) + request["model"]
            if name in last and request["model"] != without:
                between = [there for at, there in self._kills if last[name] < at <= number]
                lost = bool(between) and all(identity(request) not in there for there in between)
                again, in_hand = again + (not lost), in_hand + lost
            last[name] = number
        return again, in_hand


class Machine:
    """Starts runs of one recipe quickly, ends them, and compares what they came to."""

    def __init__(self, recipe: Path, served: Service) -> None:
        self.recipe = recipe
        self.served = served
        environment = {**os.environ, KEY_VARIABLE: KEY, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(Path(__file__).parent.parent)}
        worker = Path(__file__).with_name("kill_worker.py")
        self._worker = subprocess.Popen(
            [sys.executable, str(worker), str(recipe)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._line() == "ready"

    def start(self, root: Path) -> int:
        """Starts (or continues) a run; returns the process number."""
        root.parent.mkdir(parents=True, exist_ok=True)
        assert self._worker.stdin is not None
        self._worker.stdin.write(f"{root}\n")
        self._worker.stdin.flush()
        return int(self._line())

    def ended(self) -> int:
        """Waits for the run's end; returns its exit status."""
        return int(self._line())

    def said(self) -> str:
        """The end of what the last process said."""
        return self.recipe.with_name("said").read_text()[-5000:]

    def close(self) -> None:
        """Ends the process that starts runs."""
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait()

    def _line(self) -> str:
        assert self._worker.stdout is not None
        return self._worker.stdout.readline().strip()

    def undisturbed(self, root: Path) -> dict[str, float]:
        """A whole run; returns the seconds of each stage."""
        self.start(root)
        assert self.ended() == 0, self.said()
        (manifest,) = root.glob("*/manifest.json")
        return {stage["name"]: stage["seconds"] for stage in json.loads(manifest.read_text())["stages"]}

    def killed(self, root: Path, times: dict[str, float], stages: list[str], chance: random.Random) -> Trial:
        """A run that is killed once in each of some stages, at moments evenly spread over the stage's time."""
        trial, wanted = Trial(), {stage: chance.uniform(0, times[stage]) for stage in stages}
        repeats = Repeats(self.served)
        while True:
            process = self.start(root)
            stage = self._wait(root, process, wanted)
            if stage is None:
                assert self.ended() == 0, self.said()
                break
            os.kill(process, signal.SIGKILL)
            assert self.ended() == -signal.SIGKILL
            repeats.killed(root)
            trial.moments.append((stage, wanted.pop(stage)))
        trial.again, trial.in_hand = repeats.counts()
        return trial

    def filled(self, root: Path, times: dict[str, float], stages: list[str], chance: random.Random, left: int) -> Trial:
        """A run whose disk is full from a moment of each stage on, until it has stopped.

        Args:
            root: On a file system of its own.
            times: Seconds of each stage.
            stages: Where.
            chance: Picks the moments.
            left: Bytes left free at most; how many, chance picks too.
        """
        trial, wanted = Trial(), {stage: chance.uniform(0, times[stage]) for stage in stages}
        repeats = Repeats(self.served)
        while True:
            process = self.start(root)
            stage = self._wait(root, process, wanted)
            filler = root.parent / "filler"
            if stage is not None:
                room = chance.randint(0, left)
                trial.moments.append((stage, wanted.pop(stage)))
                # What the run itself gives back is taken too.
                while alive(process):
                    fill(filler, room)
                    time.sleep(0.02)
            status = self.ended()
            filler.unlink(missing_ok=True)
            if status:
                assert stage is not None, self.said()
                lines = [line for line in self.said().splitlines() if re.match(r"[\w.]+Error: ", line)]
                trial.told.append(lines[-1] if lines else self.said())
            elif stage is None:
                break
        trial.again, trial.in_hand = repeats.counts()
        return trial

    def _wait(self, root: Path, process: int, wanted: dict[str, float]) -> str | None:
        """Until the moment of one of the wanted stages has come, or the process has ended."""
        since: dict[str, float] = {}
        while alive(process):
            time.sleep(0.005)
            stage = running(root, process)
            begun = since.setdefault(stage, time.monotonic()) if stage else None
            if stage in wanted and begun is not None and time.monotonic() - begun >= wanted[stage]:
                return stage
        return None


def fill(filler: Path, left: int) -> None:
    """Takes the room of a file system but for so many bytes, beside what the filler has already."""
    with filler.open("ab") as file, contextlib.suppress(OSError):
        status = os.statvfs(filler.parent)
        more = status.f_bavail * status.f_frsize - left
        if more > 0:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + more)


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and is not waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def running(root: Path, process: int) -> str | None:
    """The stage that a process works on."""
    for manifest in root.glob("*/manifest.json"):
        for stage in json.loads(manifest.read_text())["stages"]:
            if stage["status"] == "running" and stage["pid"] == process:
                return str(stage["name"])
    return None


def results(root: Path) -> dict[str, str]:
    """Digests of all that a run came to, by file."""
    (folder,) = (path.parent for path in root.glob("*/manifest.json"))
    found = {}
    for pattern in RESULTS:
        for file in sorted(folder.glob(pattern)):
            content = file.read_bytes()
            if file.suffix in (".json", ".jsonl"):
                content = _CLOCK.sub(b"", content)
            found[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Files that are not alike."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """The service, the recipe and a worker."""
    os.environ[KEY_VARIABLE] = KEY
    with service() as served:
        served.answer = answer
        found = Machine(write_recipe(folder, served.base), served)
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def disk(place: Path, size: str) -> Iterator[Path | None]:
    """A file system of its own in memory, or None where this user may not mount one."""
    place.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
        )
    except FileNotFoundError:
        yield None
        return
    if done.returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


__all__ = ["STAGES", "Machine", "Trial", "differing", "disk", "fill", "machine", "results"]
