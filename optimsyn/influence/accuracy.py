"""The numerical error of a scoring method, measured on real questions.

The reference is the backward pass with every operation in float32 (`optimsyn.target.upcast`) where the model has 16-bit
weights, and in the model's own dtype where that is float32 or float64. The method and the reference score eight
validation questions, short to long, each with the answer of another one; the error is

    rms(scores - reference) / rms(reference)

over questions and subtasks. The error of the reference's own arithmetic is measured as the same share for two questions
scored one by one instead of in a padded batch.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_text
from optimsyn.base.identity import digest_of
from optimsyn.influence.options import ScoringOptions
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target
from optimsyn.target.upcast import Precision, computing

Method = Literal["exact", "twin", "forward"]

MOST_ERROR = 0.05
"""Scores with a larger error, as a share of their size, are refused."""

WANTED_ERROR = 0.005
"""A method with a smaller error is chosen automatically; one that a recipe names may have an error of `MOST_ERROR`.

Generated pairs are similar, so small errors change their order: in bfloat16, at measured errors of 1 to 3 per cent, it
had a Spearman correlation with float32 of .970 to .996 in three domains, and at less than .1 per cent of .995 to .999.
"""

_RULE = 1
_PROBES = 8


@dataclass(frozen=True)
class Choice:
    """Which method a scorer uses, and why.

    Attributes:
        method: The chosen method: exact, twin or forward.
        errors: The measured error of each tried method, in order; "exact, mixed" and "exact, float32" are the backward
            pass of a 16-bit model at higher precision (`optimsyn.target.upcast.Precision`).
        reason: A sentence that explains the choice.
    """

    method: str
    errors: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def probes_of(encoded: Sequence[Encoded]) -> list[Encoded]:
    """The samples that errors are measured on: eight questions, short to long, each with the answer of the next.

    A question is part of the direction that scores it, so its score looks more certain than a pair's. With another
    question's answer it is as new as a pair. The questions are encoded like pairs, with the end of text.
    """
    order = sorted(encoded, key=lambda item: (len(item.input_ids), item.id))
    last = len(order) - 1
    places = sorted({round(i * last / (_PROBES - 1)) for i in range(_PROBES)})
    chosen = [order[i] for i in places]
    return [_answered(question, other) for question, other in zip(chosen, chosen[1:] + chosen[:1], strict=True)]


def _answered(question: Encoded, other: Encoded) -> Encoded:
    """The prompt of one question with the answer of another, unless that is longer than both questions."""
    prompt, first = len(question.prompt_ids), len(other.prompt_ids)
    longest = max(len(question.input_ids), len(other.input_ids))
    if prompt + len(other.input_ids) - first > longest:
        return question
    ids, labels = question.input_ids[:prompt] + other.input_ids[first:], question.labels[:prompt] + other.labels[first:]
    ends = tuple(place + prompt - first for place in other.earlier_ends)
    return replace(other, id=question.id, input_ids=ids, labels=labels, earlier_ends=ends)


def relative_error(scores: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of the reference's; infinite where either is not finite."""
    off = float((scores - reference).double().square().mean().sqrt())
    size = float(reference.double().square().mean().sqrt())
    if not (math.isfinite(off) and math.isfinite(size)):
        return math.inf
    if size > 0:
        return off / size
    return 0.0 if off == 0 else math.inf


def batching_error(score: Callable[[list[Encoded]], torch.Tensor], probes: list[Encoded]) -> float:
    """The error of float32's own arithmetic: how far scores move when they are computed one by one.

    Two short questions are enough, since float32 is accurate.
    """
    few = probes[:2]
    return relative_error(score(few), torch.cat([score([probe]) for probe in few]))


def kept_error(folder: Path | None, target: Target, fingerprint: str, measure: Callable[[], float]) -> float:
    """The error of the scorer with this fingerprint: read from the folder, or measured and written there."""
    if folder is None:
        return measure()
    # Another machine rounds differently.
    dtypes = sorted({str(parameter.dtype) for parameter in target.model.parameters()})
    facts = [_RULE, fingerprint, target.device.type, dtypes]
    file = folder / f"error-{digest_of(facts)}.json"
    if file.is_file():
        try:
            return float(json.loads(file.read_text(encoding="utf-8"))["error"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{file}: not readable as a measured error ({error}); delete the file") from error
    measured = measure()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"scorer": fingerprint, "error": measured}))
    return measured


class MeasuresGradients(ABC):
    """What a scorer that takes gradients says of its numerical error."""

    target: Target
    options: ScoringOptions
    fingerprint: str
    probes: list[Encoded]
    _narrow: bool
    _precision: Precision

    @contextmanager
    def _computing(self, precision: Precision) -> Iterator[int]:
        """Sets a 16-bit model's precision; yields the tokens of a batch, which need twice the memory when widened."""
        tokens = self.options.batch_tokens
        with computing(self.target.model, precision):
            yield tokens // 2 if self._narrow and precision != "model" else tokens

    @abstractmethod
    def _score(self, encoded: Sequence[Encoded], precision: Precision | None = None) -> tuple[torch.Tensor, ...]:
        """Scores by subtask [n, k] first; at the scorer's own precision when none is given."""

    @cached_property
    def reference(self) -> torch.Tensor:
        """The scores of `probes` by subtask, [n, k], from gradients in at least float32."""
        return self._score(self.probes, "float32")[0]

    @cached_property
    def numerical_error(self) -> float:
        """The numerical error as a share of the scores' size."""
        return kept_error(self.options.folder, self.target, self.fingerprint, self._error)

    def _error(self) -> float:
        if self._narrow and self._precision != "float32":
            return relative_error(self._score(self.probes)[0], self.reference)
        return batching_error(lambda probes: self._score(probes)[0], self.probes)


def refuse_error(method: str, error: float, most_error: float) -> None:
    """Refuses a scorer whose measured error is too large."""
    if error < most_error:
        return
    cure = "models.target.dtype to float32" if method == "exact" else "influence.method to exact or auto"
    raise ModelError(
        f"influence.method: {method} is off by {percent(error)} of the scores' size on this model's own validation "
        f"questions, where less than {percent(most_error)} is allowed, so its scores are noise; set {cure}"
        + ("" if method == "exact" else ", or models.target.dtype to float32")
    )


def percent(share: float) -> str:
    """The share as readable text."""
    if not math.isfinite(share):
        return "an unknown part"
    if 0 < share < 1e-5:
        return "less than .001 %"
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"
