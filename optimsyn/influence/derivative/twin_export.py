"""Twins as ordinary peft folders, for any engine that serves LoRA adapters and log-probabilities of prompts.

A folder of twins holds one peft folder for each point at which losses are needed, and `twins.json` with the facts that
turn losses into scores: steps, weights, subtasks and the target's fingerprint.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_text
from optimsyn.influence.derivative.step_size import Plan
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.derivative.twin_adapters import step_directions
from optimsyn.recipe.problems import in_a_line
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target

RECORD = "twins.json"
# A few tokens of every kind tell tokenizers apart.
PROBE_TEXT = "Naïve café №7: 12,345.67 €\n\tdef f(x): return x**2  # 数学"
_FORMAT = 3
_PARTS = 3


@dataclass(frozen=True)
class ScoredProbe:
    """A tokenised text and its score.

    Attributes:
        weights: The weight of each label's loss.
        scores: One per subtask.
    """

    input_ids: list[int]
    labels: list[int]
    weights: list[float]
    scores: list[float]

    def encoded(self) -> Encoded:
        """The probe as input of a scorer."""
        return Encoded("probe", self.input_ids, self.labels, False, weights=tuple(self.weights))


@dataclass(frozen=True)
class TwinRecord:
    """The record of exported twins.

    Attributes:
        fingerprint: The scorer's.
        probe_ids: `PROBE_TEXT` as tokens of the target's tokenizer.
        probes: A few validation questions with their scores by gradients in float32. A server with other scores rounds
            too much.
        adapters: For each checkpoint the names of its adapters, in the order of `Plan.points`; each is also the name
            of its folder, and holds a digest of the weights.
    """

    fingerprint: str
    target: str
    model: str
    estimator: str
    subtasks: tuple[str, ...]
    across_subtasks: str
    tokens: CountedTokens
    max_length: int
    probe_ids: tuple[int, ...]
    probes: tuple[ScoredProbe, ...]
    plans: tuple[Plan, ...]
    adapters: tuple[tuple[str, ...], ...]

    def save(self, folder: Path) -> None:
        """Writes `twins.json` atomically."""
        facts = {**vars(self), "tokens": self.tokens.model_dump(), "format": _FORMAT}
        facts["plans"] = [asdict(plan) for plan in self.plans]
        facts["probes"] = [vars(probe) for probe in self.probes]
        points = [
            [{"subtask": None if k is None else self.subtasks[k], "epsilon": e} for k, e in p.points]
            for p in self.plans
        ]
        write_text(folder / RECORD, json.dumps({**facts, "points": points}, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> TwinRecord:
        """Reads what `save` wrote.

        Raises:
            ModelError: It is missing, damaged or of another format.
        """
        file = folder / RECORD
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if facts["format"] != _FORMAT:
                raise ValueError("written by another version")
            return TypeAdapter(cls).validate_python(facts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = in_a_line(error)
            raise ModelError(
                f"{file}: not readable as a record of twins ({problem}); export the twins again"
            ) from error


def export_twins(scorer: TwinScorer, folder: Path, *, stacked: bool = True) -> list[Path]:
    """Writes a scorer's twins as peft folders with `twins.json` beside them.

    Args:
        scorer: Its target holds plain LoRA adapters.
        folder: The output folder; created if needed.
        stacked: Write (B + εb)(A + εa) as `[B, εb, ε(B + εb)] [A; A; a]`, an adapter of three times the rank. The
            product is the same, but it keeps εb and εa when the server rounds adapters to 16 bits, as vLLM
            does by default (`--lora-dtype auto`); A + εa loses most of ε. Without it, serve with float32 adapters.

    Returns:
        The peft folders, checkpoint by checkpoint, in the order of `Plan.points`.

    Raises:
        ModelError: The scorer has no twins, or the target's trained parameters are not those of one plain LoRA adapter.
    """
    if not isinstance(scorer, TwinScorer):
        raise ModelError(
            f"a {type(scorer).__name__} has no twins to export, which need a score that is linear in a pair's "
            "gradient; set influence.estimator to adam_linear and influence.method to twin"
        )
    target = scorer.target
    adapter, config = _plain_lora(target)
    if stacked:
        config = _widened(config)
    folder.mkdir(parents=True, exist_ok=True)
    folders: list[Path] = []
    names: list[tuple[str, ...]] = []
    for checkpoint, directions, plan in zip(scorer.checkpoints, scorer.directions, scorer.plans, strict=True):
        target.load_checkpoint(checkpoint)
        step = step_directions(target, checkpoint, directions, scorer.estimator)
        pair = []
        for k, epsilon in plan.points:
            move = {name: (value[k or 0] * epsilon) for name, value in step.items()}
            tensors = _tensors(target, move, stacked=stacked)
            name = f"twin-{_digest(tensors, config)}"
            _write(target, adapter, config, tensors, folder / name)
            pair.append(name)
            folders.append(folder / name)
        names.append(tuple(pair))
    target.load_checkpoint(scorer.checkpoints[-1])
    TwinRecord(
        fingerprint=scorer.fingerprint,
        target=target.fingerprint(),
        model=target.name,
        estimator=scorer.estimator.name,
        subtasks=scorer.subtasks,
        across_subtasks=scorer.across_subtasks,
        tokens=scorer.tokens,
        max_length=target.max_length,
        probe_ids=tuple(probe_ids(target.tokenizer)),
        probes=tuple(
            ScoredProbe(probe.input_ids, probe.labels, list(probe.token_weights), row.tolist())
            for probe, row in zip(*scorer.probe_scores(), strict=True)
        ),
        plans=tuple(scorer.plans),
        adapters=tuple(names),
    ).save(folder)
    return folders


def probe_ids(tokenizer: Any) -> list[int]:
    """`PROBE_TEXT` as tokens of a tokenizer."""
    return [int(token) for token in tokenizer(PROBE_TEXT)["input_ids"]]


def _plain_lora(target: Target) -> tuple[str, Any]:
    """Name and config of the trained adapter."""
    configs = getattr(target.model, "peft_config", None) or {}
    for adapter, config in configs.items():
        ends = (f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight")
        plain = config.bias == "none" and not config.use_dora and all(n.endswith(ends) for n in target.parameters)
        if plain:
            return str(adapter), config
    raise ModelError(
        "twins can be exported for one plain LoRA adapter only (no DoRA, no biases, no full-weight layers); use "
        "TwinScorer on this target in process"
    )


def _widened(config: Any) -> Any:
    """The config of an adapter of three times the rank with the same scale."""
    wide = copy.deepcopy(config)
    factor = math.sqrt(_PARTS) if config.use_rslora else _PARTS
    wide.r, wide.lora_alpha = config.r * _PARTS, config.lora_alpha * factor
    wide.rank_pattern = {key: rank * _PARTS for key, rank in (config.rank_pattern or {}).items()}
    wide.alpha_pattern = {key: alpha * factor for key, alpha in (config.alpha_pattern or {}).items()}
    return wide


def _tensors(target: Target, move: dict[str, torch.Tensor], *, stacked: bool) -> dict[str, torch.Tensor]:
    """The weights of one twin by parameter name, on the CPU."""
    tensors = {}
    for name, parameter in target.parameters.items():
        here = parameter.detach().to(target.dtype)
        if not stacked:
            tensors[name] = here + move[name]
        elif ".lora_A." in name:
            # The step is in B's columns only, so that A's rows have one size: ε·(B + εb)·a.
            tensors[name] = torch.cat([here, here, move[name] / _size(move[name])])
        else:
            other = move[name.replace(".lora_B.", ".lora_A.")]
            tensors[name] = torch.cat([here, move[name], (here + move[name]) * _size(other)], dim=1)
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def _size(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) or 1.0


def _digest(tensors: dict[str, torch.Tensor], config: Any) -> str:
    digest = hashlib.sha256(f"{config.r} {config.lora_alpha}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _write(target: Target, adapter: str, config: Any, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(
        target.model, state_dict=tensors, adapter_name=adapter, save_embedding_layers=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.deepcopy(config)
    config.inference_mode = True
    config.save_pretrained(str(folder))
