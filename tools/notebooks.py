"""Executes the notebooks and writes the committed `.ipynb` with outputs; `--check` reports what does not match.

    python tools/notebooks.py                     # all, in order, against one run root under runs/notebooks
    python tools/notebooks.py 10 12_hosted        # only notebooks with these prefixes
    python tools/notebooks.py --cells             # after editing prose: updates cells, keeps outputs, runs nothing
    python tools/notebooks.py --check             # what CI checks; starts no kernel
    python tools/notebooks.py --measure           # update the measured lines too
    python tools/notebooks.py --size full 0       # generate the stage notebooks from a run of this size from now on

Replies are cached and finished stages skipped, so that a second time takes a few minutes and changes no byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbformat import NotebookNode
from notebook_form import build, faults_of, same_cells, source_cells, with_ids

from optimsyn.base.errors import OptimsynError
from optimsyn.base.files import write_json, write_text
from optimsyn.base.terminal.table import duration
from optimsyn.recipe.sizes import SIZES
from optimsyn.runs import STAGES

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
MEASURED = FOLDER / "measured.json"
WORK = ROOT / "runs" / "notebooks"
QUICKSTART = "00_quickstart"
# These start from a finished run, whose time is not included.
_ON_A_RUN = ("10_", "11_")
# Removed, so that no notebook spends money while it is generated.
_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY", "OPENROUTER_API_KEY", "HF_TOKEN")


@dataclass
class Measured:
    """Measured cost of a notebook, kept until the next measurement."""

    seconds: float
    peak_memory_bytes: int
    replies: int
    tokens: int
    cost_usd: float
    machine: str
    size: str

    def line(self, name: str) -> str:
        """The sentence at the top of the notebook."""
        bought = (
            f"{self.replies} replies of {self.tokens:,} tokens, {self.cost_usd:.2f} USD"
            if self.replies
            else ("no reply bought")
        )
        subject = {QUICKSTART: "All seven stages"}.get(name, "The stage" if _stage(name) else "This notebook")
        where = ", on the finished run of the quickstart" if name.startswith(_ON_A_RUN) else ""
        text = (
            f"**Measured.** {subject} took {duration(self.seconds)} and at most {self.peak_memory_bytes / 1e9:.1f} GB "
            f"of memory{where}: {bought}, on {self.machine}."
        )
        if _stage(name):
            text += f' The outputs below are of a run with `size = "{self.size}"`.'
        return text


def _stage(name: str) -> str | None:
    stage = name[3:]
    return stage if stage in STAGES else None


class MeasuredFile:
    """`measured.json`: the size of the stage notebooks' run, and a measurement per notebook."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.size: str = raw.get("size", "tiny")
        self.notebooks = {name: Measured(**facts) for name, facts in raw.get("notebooks", {}).items()}

    def line(self, name: str) -> str:
        """The measured line of a notebook; empty without a measurement."""
        return self.notebooks[name].line(name) if name in self.notebooks else ""

    def save(self) -> None:
        """Writes the file."""
        facts = {name: vars(self.notebooks[name]) for name in sorted(self.notebooks)}
        write_json(self.path, {"size": self.size, "notebooks": facts})


def sources() -> list[Path]:
    """The percent-format sources, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def generated(source: Path, measured: MeasuredFile, executed: NotebookNode | None = None) -> NotebookNode:
    """The notebook of a source, with new outputs if it was executed, else with its earlier ones."""
    target = source.with_suffix(".ipynb")
    earlier = nbformat.read(target, as_version=4).cells if target.is_file() else []
    cells = with_ids(source_cells(source, measured.line(source.stem)), earlier)
    return build(cells, executed, root=ROOT, keep=earlier)


def check() -> list[str]:
    """Mismatches between sources and notebooks."""
    measured = MeasuredFile(MEASURED)
    problems = [
        f"{path.name}: its source {path.with_suffix('.py').name} is missing"
        for path in sorted(FOLDER.glob("*.ipynb"))
        if not path.with_suffix(".py").is_file()
    ]
    for source in sources():
        target = source.with_suffix(".ipynb")
        if not target.is_file():
            problems.append(f"{target.name}: missing; run `make notebooks`")
            continue
        notebook = nbformat.read(target, as_version=4)
        if same_cells(notebook) != same_cells(generated(source, measured)):
            problems.append(f"{target.name}: its cells differ from {source.name}; run `make notebooks`")
        if source.stem not in measured.notebooks:
            problems.append(f"{target.name}: it has no measured line; run `make notebooks`")
        problems += faults_of(notebook, target.name)
    return problems


def execute_all(chosen: Sequence[Path], *, measure: bool, size: str | None) -> list[str]:
    """Executes notebooks in order and writes their `.ipynb`; returns problems."""
    from optimsyn.llm.embedded.server import EmbeddedServer

    for name in _KEYS:
        os.environ.pop(name, None)
    WORK.mkdir(parents=True, exist_ok=True)
    # Notebooks keep their runs in `runs` under the working directory.
    os.chdir(WORK)
    measured = MeasuredFile(MEASURED)
    measured.size = size or measured.size
    problems: list[str] = []
    with EmbeddedServer():
        for source in chosen:
            sys.stdout.write(f"{source.stem} … ")
            sys.stdout.flush()
            begun = time.monotonic()
            try:
                executed, facts = _execute(source, measured.size)
            except OptimsynError as error:
                sys.stdout.write("failed\n")
                return [*problems, str(error)]
            measurement = measured.notebooks.get(source.stem)
            if measure or measurement is None or measurement.size != facts.size:
                measured.notebooks[source.stem] = facts
                measured.save()
            notebook = generated(source, measured, executed)
            changed = _write(source.with_suffix(".ipynb"), notebook)
            problems += faults_of(notebook, source.with_suffix(".ipynb").name)
            took = duration(time.monotonic() - begun)
            sys.stdout.write(f"{'written' if changed else 'the same'}, {took}\n")
    return problems


def _execute(source: Path, size: str) -> tuple[NotebookNode, Measured]:
    from optimsyn.execution.engine import execute

    plain = WORK / "plain" / f"{source.stem}.ipynb"
    output = WORK / "executed" / plain.name
    cells = with_ids(source_cells(source), [])
    write_text(plain, _text(build(cells, None, root=ROOT)))
    parameters = {"size": size} if _stage(source.stem) else {}
    before, begun = _replies(), time.monotonic()
    with _peak_memory() as peak:
        execute(plain, output, parameters)
    seconds = time.monotonic() - begun
    executed = nbformat.read(output, as_version=4)
    after = _replies()
    machine = _machine()
    own = Measured(seconds, peak[0], *(b - a for a, b in zip(before, after, strict=True)), machine, "tiny")
    return executed, _of_stages(source.stem, size, machine) or own


def _of_stages(name: str, size: str, machine: str) -> Measured | None:
    """Usage of a stage notebook's stage from the manifest; of all stages for the quickstart."""
    from optimsyn import Run

    stages = list(STAGES) if name == QUICKSTART else [stage for stage in STAGES if stage == _stage(name)]
    if not stages:
        return None
    size = "tiny" if name == QUICKSTART else size
    manifest = Run.start("quickstart", size=size, root=WORK / "runs").manifest
    records = [manifest.stage(stage) for stage in stages]
    return Measured(
        seconds=sum(record.seconds or 0.0 for record in records),
        peak_memory_bytes=max(record.peak_memory_bytes or 0 for record in records),
        replies=sum(record.cost.replies for record in records),
        tokens=sum(record.cost.input_tokens + record.cost.output_tokens for record in records),
        cost_usd=sum(record.cost.cost_usd for record in records),
        machine=machine,
        size=size,
    )


def _replies() -> tuple[int, int, float]:
    """Replies, tokens and dollars in all reply caches under the work folder."""
    from optimsyn.llm.replies import ReplyCache

    replies, tokens, cost = 0, 0, 0.0
    for path in sorted(WORK.rglob("*.sqlite")):
        cache = ReplyCache(path)
        usage = cache.totals()
        cache.close()
        replies, tokens, cost = replies + usage.replies, tokens + usage.tokens, cost + usage.cost_usd
    return replies, tokens, cost


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Peak resident size of the running kernel, sampled twice a second."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not done.wait(0.5):
            for process in me.children(recursive=True):
                try:
                    if "optimsyn.execution.kernel" in process.cmdline():
                        peak[0] = max(peak[0], process.memory_info().rss)
                except psutil.Error:
                    continue  # it ended in between

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _machine() -> str:
    """Cores, processor and whether there is a GPU."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    processor = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"{cores} cores ({processor}, {gpu})"


def _write(path: Path, notebook: NotebookNode) -> bool:
    text = _text(notebook)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def _text(notebook: NotebookNode) -> str:
    return str(nbformat.writes(notebook, version=4)) + "\n"


def _chosen(names: Sequence[str]) -> list[Path]:
    if not names:
        return sources()
    chosen = [source for source in sources() if any(source.stem.startswith(Path(name).stem) for name in names)]
    if not chosen:
        sys.exit(f"no notebook begins with {', '.join(names)}; there are {', '.join(p.stem for p in sources())}")
    return chosen


def main() -> int:
    """Executes, updates or checks the notebooks; exit code 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only notebooks with these prefixes")
    parser.add_argument("--check", action="store_true", help="only report what does not match")
    parser.add_argument("--cells", action="store_true", help="update cells, keep outputs, execute nothing")
    parser.add_argument("--measure", action="store_true", help="update the measured lines")
    parser.add_argument("--size", choices=SIZES, help="size for the stage notebooks; saved in measured.json")
    args = parser.parse_args()
    if args.check:
        problems = check()
    elif args.cells:
        measured = MeasuredFile(MEASURED)
        for source in _chosen(args.names):
            _write(source.with_suffix(".ipynb"), generated(source, measured))
        problems = check()
    else:
        problems = execute_all(_chosen(args.names), measure=args.measure, size=args.size)
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
