"""Estimates the disk space of a run before it begins, by kind of file, against the free space.

The estimate uses the recipe and the headers of the models' files; no weights are loaded. It counts what a run keeps,
and the most checkpoints that exist at once during a training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.disk import free_bytes, size_text
from optimsyn.base.errors import ModelError, StageError
from optimsyn.llm.disk_reserve import RESERVE_BYTES
from optimsyn.machine.weights import tensor_shapes

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import Lora, ModelSpec, Recipe

# Measured on runs of the bundled recipes: prompts beside the passage, a row of the ledger, an executed notebook.
_PROMPT_BYTES = 4_500
_BYTES_A_WORD = 7
_BYTES_A_TOKEN = 4
_ROW_BYTES = 2_600
_NOTEBOOKS_BYTES = 3_000_000
# SQLite's pages are rarely full, and the latest writes are in its journal too.
_SQLITE = 1.3
_JOURNALS_BYTES = 8_000_000
# A variant with too few valid candidates writes more.
_FURTHER = 1.25
# Adam keeps two moments a weight, in float32 like the adapter.
_FLOAT = 4
_WITH_MOMENTS = 3
# Bytes a weight in most model files.
_NARROW = 2
# Two resumable checkpoints exist while a third is written.
_CHECKPOINTS = 3
_SUBTASKS = 8
# Parameters of a rank 8 adapter on the attention of the embedded model; for other models whose layers are unknown, as
# a share of their parameters (larger for small models).
_EMBEDDED_ADAPTER = 725_000
_ADAPTER_SHARE = 0.003
# Warn when the free space is less than this times the need.
_TIGHT = 1.5


# For each kind the last stage that writes it, and its files in the run folder.
_PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "replies": ("synthesize", ("replies.sqlite*",)),
    "judgements": ("synthesize", ("rewards.*",)),
    "pairs and datasets": ("synthesize", ("synthesize/**/*", "dataset/**/*")),
    "validation directions": ("warm_up", ("warm_up/directions/**/*",)),
    "warm-up checkpoints": ("warm_up", ("warm_up/checkpoints/**/*",)),
    "fine-tuning": ("fine_tune", ("fine_tune/**/*",)),
    "policy training": ("train_policy", ("train_policy/**/*",)),
    "notebooks and report": ("evaluate", ("notebooks/*", "report.html", "summary.*")),
    "working space": ("evaluate", ("*.reserve",)),
}


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run will take.

    Attributes:
        parts: Kind -> bytes.
        free: Free bytes on the file system of the run folder; None if unknown.
        more: What the run will take beyond its existing files.
    """

    parts: dict[str, int]
    free: int | None
    folder: Path
    more: int

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.parts.values())

    def text(self) -> str:
        """The total and its largest kinds in words."""
        largest = sorted(self.parts.items(), key=lambda part: -part[1])
        sizes = ", ".join(f"{kind} {size_text(size)}" for kind, size in largest if size >= 0.01 * self.total)
        return f"about {size_text(self.total)} of disk ({sizes})"

    @property
    def problem(self) -> str | None:
        """Why the disk is too small, or None."""
        if self.free is None or self.more <= self.free:
            return None
        return (
            f"{self.folder}: the run will take {self.text()}"
            + (f", {size_text(self.more)} more than now" if self.more < self.total else "")
            + f", and its file system has {size_text(self.free)} free; free space, name another disk with --root, or "
            "ask for fewer pairs"
        )

    @property
    def warning(self) -> str | None:
        """A warning that the disk is nearly too small, or None."""
        if self.free is None or self.problem is not None or self.more * _TIGHT <= self.free:
            return None
        return (
            f"{self.folder}: the run will take {self.text()}, and its file system has {size_text(self.free)} free; "
            "when it is full, the run stops, and continues once there is space"
        )


def disk_need(
    recipe: Recipe, folder: Path, *, subtasks: int | None = None, weight_bytes: int | None = None
) -> DiskNeed:
    """The disk space that a recipe's run will take.

    `weight_bytes`, the size of the target's weights or more, is used where its layers are unknown (not downloaded yet).
    """
    prompt, policy, synthesis = recipe.optimizers.prompt, recipe.optimizers.policy, recipe.synthesis
    searched = prompt.metric_calls if prompt.for_writer else 0
    trained = policy.judged(None, drawn_again=1.0) if policy.enabled else 0
    drafts = recipe.further_warm_ups * recipe.warm_up.pairs
    # With the trained policy as the writer.
    again = prompt.metric_calls if recipe.optimizers.searched_again else 0
    each = round(_FURTHER * synthesis.first_round)
    candidates = each * len(recipe.variants)
    if "static_pool" in recipe.variants:
        candidates += synthesis.pool or (trained + again + drafts or searched)
    author = recipe.author
    rubrics = each if "author" in recipe.variants else 0
    rubrics += author.lessons if policy.enabled and "author" in policy.learn_from else 0
    rubrics += prompt.metric_calls if prompt.for_author else 0
    judged = searched + trained * (1 + recipe.further_warm_ups) + again + candidates + rubrics * author.drafts
    replies = 2 * (recipe.warm_up.pairs + searched + again + candidates) + trained
    replies += drafts + rubrics * (author.steps + author.drafts)
    replies += recipe.checks.redrafts * (recipe.warm_up.pairs + judged)
    if recipe.limits.requests is not None:
        replies = min(replies, recipe.limits.requests)
    longest = max(recipe.models.generator.max_tokens or 0, recipe.models.rubric.max_tokens or 0)
    text = _PROMPT_BYTES + _BYTES_A_WORD * recipe.documents.passage_words + len(recipe.guiding_text)
    reply = text + _BYTES_A_TOKEN * longest

    target = _FLOAT * _target_parameters(recipe, weight_bytes)
    rubric = _FLOAT * _adapter(recipe.models.rubric, policy.lora, None) if policy.enabled else 0
    variants = len(recipe.fine_tuned)
    directions = (_SUBTASKS if subtasks is None else subtasks) * recipe.warm_up.checkpoints * target
    warmed_up = _WITH_MOMENTS * recipe.warm_up.checkpoints * target
    parts = {
        "replies": round(_SQLITE * replies * reply),
        "judgements": round(_SQLITE * judged * _ROW_BYTES),
        "pairs and datasets": round(_ROW_BYTES * (3 * candidates + 2 * synthesis.pairs)),
        "validation directions": directions,
        "warm-up checkpoints": warmed_up,
        "fine-tuning": variants * target + _CHECKPOINTS * _WITH_MOMENTS * target,
        "policy training": rubric * (1 + _CHECKPOINTS * _WITH_MOMENTS)
        + recipe.further_warm_ups * (directions + warmed_up),
        "notebooks and report": _NOTEBOOKS_BYTES,
        "working space": RESERVE_BYTES + _JOURNALS_BYTES,
    }
    return DiskNeed(parts, free_bytes(folder), folder, _missing(parts, folder))


def _missing(parts: dict[str, int], folder: Path) -> int:
    """Bytes still to be written: none for finished stages, and less what exists of the others."""
    from optimsyn.runs.manifest import ManifestFile

    finished: set[str] = set()
    if (folder / "manifest.json").is_file():
        with suppress(StageError):  # from another version; reported when the run is opened
            stages = ManifestFile(folder / "manifest.json").read().stages
            finished = {record.name for record in stages if record.status == "finished"}
    more = 0
    for kind, size in parts.items():
        stage, patterns = _PLACES[kind]
        if stage not in finished:
            files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
            more += max(0, size - sum(file.stat().st_size for file in files))
    return more


def _target_parameters(recipe: Recipe, weight_bytes: int | None) -> int:
    """Trainable parameters of the target."""
    spec = recipe.models.target
    if not spec.full_weights:
        return _adapter(spec, spec.lora, weight_bytes)
    patterns = [re.compile(rf"(?:.*\.)?(?:{pattern})") for pattern in spec.full_weights]
    count = sum(
        math.prod(shape) for name, shape in _shapes(spec) if any(pattern.fullmatch(name) for pattern in patterns)
    )
    return count or (weight_bytes or 0) // _NARROW


def _adapter(spec: ModelSpec, lora: Lora, weight_bytes: int | None) -> int:
    """Parameters of a LoRA: rank * (rows + columns) for each of its layers."""
    names = lora.target_modules
    if spec.provider == "embedded":
        # Seven linear layers in each block, which a pattern may all name.
        return round(_EMBEDDED_ADAPTER * lora.r / 8 * max(1.0, (7 if isinstance(names, str) else len(names)) / 4))
    every = names == "all-linear"
    pattern = re.compile(names) if isinstance(names, str) and not every else None
    count = sum(
        lora.r * sum(shape)
        for name, shape in _shapes(spec)
        if len(shape) == 2
        and (every or (pattern.fullmatch(name) if pattern is not None else name.rsplit(".", 1)[-1] in names))
    )
    return count or round((weight_bytes or 0) / _NARROW * _ADAPTER_SHARE * lora.r / 8)


def _shapes(spec: ModelSpec) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of a local model's layers."""
    from optimsyn.machine.hub_lookup import cached_folder
    from optimsyn.recipe.model_names import hub_id

    if spec.provider != "local":
        return
    name = hub_id(spec.name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        cached = cached_folder("model", name, spec.revision)
        if cached is None:
            return
        folder = cached
    try:
        shapes = tensor_shapes(folder)
    except ModelError:
        # The preflight reports the file; here the estimate for unknown layers is enough.
        return
    for tensor, shape in shapes.items():
        if tensor.endswith(".weight"):
            yield tensor.removesuffix(".weight"), shape
