"""The pairs of a run from synthesis through custom stages to fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimsyn.base.errors import StageError
from optimsyn.base.files import read_jsonl
from optimsyn.data.records import Pair
from optimsyn.reward.judgements import Judgement, content_key
from optimsyn.runs.manifest import Manifest

FIRST, LAST = "synthesize", "fine_tune"


def between(manifest: Manifest) -> tuple[str, ...]:
    """The stages that may hand on other pairs."""
    names = manifest.names
    return names[names.index(FIRST) + 1 : names.index(LAST)]


def pairs_file(folder: Path, stage: str, variant: str) -> Path:
    """The file with the pairs of a variant after a stage."""
    return folder / stage / f"{variant}.selected.jsonl"


def latest_pairs(folder: Path, manifest: Manifest, variant: str) -> Path:
    """The file with the pairs of a variant after the last finished stage."""
    for name in reversed(between(manifest)):
        file = pairs_file(folder, name, variant)
        if manifest.stage(name).status == "finished" and file.is_file():
            return file
    return pairs_file(folder, FIRST, variant)


def pairs_of(folder: Path, manifest: Manifest, variant: str) -> list[Pair]:
    """The current pairs of a variant."""
    file = latest_pairs(folder, manifest, variant)
    if not file.is_file():
        raise StageError(f"{file}: missing; the stage synthesize writes the pairs of the variant {variant}")
    return read_jsonl(file, Pair)


def judged_of(folder: Path, variant: str, pairs: Sequence[Pair]) -> list[Judgement]:
    """The judgements of a variant's pairs.

    A pair whose text a stage has changed keeps its lineage, but no measurement: it has no influence, and its reward
    means nothing.
    """
    by_id = {row.pair.id: row for row in candidates_of(folder, variant) if row.pair is not None and row.valid}
    judgements = []
    for pair in pairs:
        row = by_id.get(pair.id)
        if row is not None and row.pair is not None and content_key(row.pair) == content_key(pair):
            judgements.append(row.model_copy(update={"pair": pair}))
        else:
            judgements.append(_unmeasured(variant, pair, row))
    return judgements


def candidates_of(folder: Path, variant: str) -> list[Judgement]:
    """Every candidate of a variant that `synthesize` judged, valid or not."""
    file = folder / FIRST / f"{variant}.candidates.jsonl"
    if not file.is_file():
        raise StageError(f"{file}: missing; the stage synthesize writes the candidates of the variant {variant}")
    return read_jsonl(file, Judgement)


def _unmeasured(variant: str, pair: Pair, before: Judgement | None) -> Judgement:
    names = ("passage_id", "kind", "seed", "guiding_text", "rubric_model", "rubric")
    return Judgement(
        **{name: getattr(pair, name) for name in names},
        key=pair.id if before is None else before.key,
        variant=variant,
        pair=pair,
        valid=True,
        reward=0.0,
        feedback="Changed after it was judged.",
    )
