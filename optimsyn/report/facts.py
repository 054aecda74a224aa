"""The files of a run so far, for its report and comparisons; no model is loaded.

What a run does not have yet is empty. Candidates are not redacted, since there may be many: pass one through `shown`
before showing it. All other text is redacted by `optimsyn.base.secrets.redaction`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from optimsyn.base.errors import DataError
from optimsyn.base.files import iter_json
from optimsyn.base.secrets.redaction import redact_tree, secret_values
from optimsyn.influence.attribution.records import SHARES_FILE, TokenShares
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.arms import under_second_text
from optimsyn.reward.look.record import REWARD_LOOK_FILE, RewardLook
from optimsyn.runs.datasets.pairs import between
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import Manifest
from optimsyn.runs.outcomes import RunState, manifest_now, run_state
from optimsyn.runs.results.built_in import (
    OptimizePromptResult,
    PrepareResult,
    SynthesizeResult,
    TrainPolicyResult,
    WarmUpResult,
)
from optimsyn.runs.results.losses import Losses
from optimsyn.runs.results.reading import read_result
from optimsyn.runs.results.stage_result import RESULT_FILE, StageResult
from optimsyn.training.intervals import MetricRow

Row = dict[str, Any]
ResultT = TypeVar("ResultT", bound=StageResult)


@dataclass(frozen=True)
class Judged:
    """Pairs that a stage has judged so far."""

    pairs: int = 0
    valid: int = 0


@dataclass(frozen=True)
class RunFacts:
    """The data of a run.

    Attributes:
        secrets: Values that no page may show.
        results: Result of each stage that has one.
        candidates: All judged candidates of each written variant.
        kept: Keys of the candidates that became pairs, by variant.
        first_draft: Influence of the valid first-draft pairs.
        guiding_text: Text that the prompt optimiser chose; None before.
        second_text: Text after its second turn, in which the trained policy wrote the rubrics; None before, or
            without one.
        against_no_rubric: Rows as in `evaluation`, with differences to the target trained on pairs without a rubric.
        judged: By stage, from `rewards.jsonl`; read only while `synthesize` has not finished.
        dataset_pairs: Number of pairs in the dataset; None before there is one.
        test_set: Identity of the test questions; "" before `prepare` has finished.
        validation_set: Identity of the validation questions; "" before `prepare` has finished.
    """

    name: str
    folder: Path
    recipe: Recipe
    manifest: Manifest
    state: RunState
    secrets: list[str] = field(repr=False)
    results: dict[str, StageResult]
    prepare: PrepareResult | None
    warm_up: WarmUpResult | None
    optimize_prompt: OptimizePromptResult | None
    train_policy: TrainPolicyResult | None
    synthesize: SynthesizeResult | None
    lost: list[Row]
    candidates: dict[str, list[Row]]
    kept: dict[str, set[str]]
    first_draft: list[float]
    reward_look: RewardLook | None
    prompt_history: list[Row]
    policy_history: list[Row]
    second_history: list[Row]
    guiding_text: str | None
    second_text: str | None
    evaluation: list[MetricRow]
    against_no_rubric: list[MetricRow]
    token_shares: TokenShares | None
    judged: dict[str, Judged]
    dataset_pairs: int | None
    test_set: str
    validation_set: str

    @classmethod
    def read(cls, run: Run) -> RunFacts:
        """Reads a run.

        Raises:
            DataError: A file of the run is damaged; names it.
        """
        secrets = secret_values(run.secret_names)
        files = _Files(run.folder, secrets)
        synthesize, look = run.folder / "synthesize", run.folder / "warm_up" / REWARD_LOOK_FILE
        variants = [name for name in run.recipe.variants if (synthesize / f"{name}.candidates.jsonl").is_file()]
        manifest, working = manifest_now(run)
        manifest = Manifest.model_validate(redact_tree(manifest.model_dump(), secrets))
        read = {
            stage: read_result(raw, run.folder / stage / RESULT_FILE)
            for stage in manifest.names
            if (raw := files.json(stage, RESULT_FILE)) is not None
        }
        results = {stage: result for stage, result in read.items() if result is not None}
        shares = synthesize / SHARES_FILE
        return cls(
            name=run.name,
            folder=run.folder,
            recipe=run.recipe,
            manifest=manifest,
            state=run_state(manifest, working),
            secrets=secrets,
            results=results,
            prepare=_as(PrepareResult, results.get("prepare")),
            warm_up=_as(WarmUpResult, results.get("warm_up")),
            optimize_prompt=_as(OptimizePromptResult, results.get("optimize_prompt")),
            train_policy=_as(TrainPolicyResult, results.get("train_policy")),
            synthesize=_as(SynthesizeResult, results.get("synthesize")),
            lost=files.rows("prepare", "lost.jsonl"),
            candidates={name: list(files.raw("synthesize", f"{name}.candidates.jsonl")) for name in variants},
            kept={
                name: {row["key"] for row in files.raw("synthesize", f"{name}.judged.jsonl")}
                for name in variants
                if (synthesize / f"{name}.judged.jsonl").is_file()
            },
            first_draft=files.json("warm_up", "influence.json") or [],
            reward_look=RewardLook.load(look) if look.is_file() else None,
            prompt_history=files.rows("optimize_prompt", "history.jsonl"),
            policy_history=files.rows("train_policy", "history.jsonl"),
            second_history=files.rows("train_policy", "text", "history.jsonl"),
            guiding_text=files.text("optimize_prompt", "guiding_text.txt"),
            second_text=files.text("train_policy", "guiding_text.txt"),
            evaluation=files.json("evaluation.json") or [],
            against_no_rubric=files.json("evaluate", "against_no_rubric.json") or [],
            token_shares=_safe(TokenShares.read(shares), secrets) if shares.is_file() else None,
            judged={} if "synthesize" in results else _judged(files.raw("rewards.jsonl")),
            dataset_pairs=_dataset_pairs(manifest, results.get("synthesize")),
            test_set=_digest(run.folder / "prepare" / "test.jsonl") if "prepare" in results else "",
            validation_set=_digest(run.folder / "prepare" / "validation.jsonl") if "prepare" in results else "",
        )

    @property
    def losses(self) -> dict[str, Losses]:
        """Losses of each variant's candidates."""
        return (self.synthesize.losses if self.synthesize is not None else None) or {}

    @property
    def dataset_variant(self) -> str:
        """The variant that is or will be the dataset."""
        result = self.synthesize
        return self.recipe.dataset_variant if result is None or result.dataset is None else result.dataset

    @property
    def dataset_has_second_text(self) -> bool:
        """Whether the dataset is or will be written under the text after its second turn."""
        return under_second_text(self.dataset_variant, self.recipe.synthesis, self.recipe.optimizers)

    @property
    def searched_text(self) -> str | None:
        """The text of the search that the dataset follows, else of the first one; None before."""
        return self.second_text if self.dataset_has_second_text and self.second_text else self.guiding_text

    @property
    def influence(self) -> dict[str, list[float]]:
        """Influence of the valid candidates: first draft, then each variant, as far as available."""
        influence = {"first_draft": self.first_draft} if self.first_draft else {}
        for variant, rows in self.candidates.items():
            values = [row["influence"] for row in rows if row["influence"] is not None]
            if values:
                influence[variant] = values
        return influence

    def passages(self, passage_ids: Iterable[str]) -> dict[str, Row]:
        """The passages with these ids, redacted."""
        ids = set(passage_ids)
        rows = _Files(self.folder, self.secrets).raw("prepare", "passages.jsonl")
        return {row["id"]: self.shown(row) for row in rows if row["id"] in ids}

    def shown(self, row: Row) -> Row:
        """A row without secrets."""
        clean: Row = redact_tree(row, self.secrets)
        return clean


class _Files:
    """Reads the files of a run folder; a missing file is empty."""

    def __init__(self, folder: Path, secrets: list[str]) -> None:
        self._folder = folder
        self._secrets = secrets

    def json(self, *parts: str) -> Any:
        path = self._folder.joinpath(*parts)
        if not path.is_file():
            return None
        try:
            return redact_tree(json.loads(path.read_text(encoding="utf-8")), self._secrets)
        except ValueError as error:
            # Files in the run's root are from `evaluate`.
            stage = parts[0] if len(parts) > 1 else "evaluate"
            raise DataError(f"{path}: not valid JSON ({error}); run the stage {stage} again") from error

    def rows(self, *parts: str) -> list[Row]:
        return [redact_tree(row, self._secrets) for row in self.raw(*parts)]

    def raw(self, *parts: str) -> Iterable[Row]:
        path = self._folder.joinpath(*parts)
        # The writer may have been killed in the middle of a line.
        return iter_json(path, tolerate_torn=True) if path.is_file() else ()

    def text(self, *parts: str) -> str | None:
        path = self._folder.joinpath(*parts)
        if not path.is_file():
            return None
        return str(redact_tree(path.read_text(encoding="utf-8").strip(), self._secrets))


def _as(kind: type[ResultT], result: StageResult | None) -> ResultT | None:
    return result if isinstance(result, kind) else None


def _dataset_pairs(manifest: Manifest, result: StageResult | None) -> int | None:
    """Number of pairs after `synthesize` and any custom stages."""
    if not isinstance(result, SynthesizeResult):
        return None
    count = result.pairs
    for name in between(manifest):
        record = manifest.stage(name)
        if record.status == "finished":
            count = record.notes.get("handed_on", {}).get(result.dataset, count)
    return count


def _judged(rows: Iterable[Row]) -> dict[str, Judged]:
    """By stage, over the rows with the identity of the last one (see `optimsyn.reward.judgements.latest_rows`)."""
    by_identity: dict[str, dict[str, Judged]] = {}
    latest = ""
    for row in rows:
        if "valid" in row:
            latest = row.get("identity", "")
            by_stage = by_identity.setdefault(latest, {})
            before = by_stage.get(row.get("source", ""), Judged())
            by_stage[row.get("source", "")] = Judged(before.pairs + 1, before.valid + bool(row["valid"]))
    return by_identity.get(latest, {})


def _safe(shares: TokenShares, secrets: list[str]) -> TokenShares:
    """Token shares without secrets; a pair with a secret spread over tokens loses its pieces."""
    pairs = []
    for pair in shares.pairs:
        clean = pair.model_validate(redact_tree(pair.model_dump(mode="json"), secrets))
        whole = "".join(piece.text for piece in pair.pieces)
        pairs.append(clean if redact_tree(whole, secrets) == whole else clean.model_copy(update={"pieces": ()}))
    return shares.model_copy(update={"pairs": tuple(pairs), "reason": redact_tree(shares.reason, secrets)})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else ""
