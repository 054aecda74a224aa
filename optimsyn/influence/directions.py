"""Validation directions: for each subtask the mean of its questions' gradients.

    V_{k,i} = mean over questions j of subtask k of ĝ_j / s_j      at checkpoint i

s_j = S / v_j, where v_j is the question's vote and S the root mean square of v_j ‖ĝ_j‖ over all questions, which brings
V to the scale of a unit vector.

`plain`: v_j = 1. V is then the gradient of the mean loss of the subtask. `unit`: v_j = 1 / ‖ĝ_j‖, so that each question
counts the same, as in the paper; the mean of cosines with several vectors is one dot product with the mean of the
normalised vectors. `probability`: v_j = N_j P_j, where P_j = exp(-N_j L_j) is the probability of the answer, L_j the
question's loss and N_j what the sum over its tokens is divided by in L_j (their number, of a mean). As
∇P_j = -N_j P_j ĝ_j, V is minus the gradient of the mean probability. In every case only one direction per subtask is
stored.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from optimsyn.base.errors import ModelError
from optimsyn.base.identity import digest_of
from optimsyn.influence.estimators import BUILT_IN, Estimator
from optimsyn.influence.gradients.taps import GradientTaps, small_batches
from optimsyn.influence.moments import moments_of
from optimsyn.influence.options import ScoringOptions, refuse_unknown
from optimsyn.recipe.sections.models import QuestionGradients
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target
from optimsyn.target.upcast import in_float32, is_narrow
from optimsyn.target.warm_up.checkpoints import Checkpoint

_PREFIX = "direction:"
# A smaller sum of gradients, in units of the smallest number, would have lost digits: 1e-30 in float32.
_DIGITS = 1e8


@dataclass(frozen=True)
class Directions:
    """One direction per subtask at one checkpoint.

    Attributes:
        subtasks: Their names, sorted; rows of every vector.
        vectors: Parameter name -> [K, *parameter.shape], on the CPU.
        reference_norms: `Estimator.identity` -> root mean square of ‖Γ(ĝ_j)‖ over the questions. Dot-product scores
            are divided by it, which gives them the scale of a cosine but still rewards long directions.
        losses: Loss of each question, in the caller's order.
        gradient_norms: ‖ĝ_j‖ of each question, in the caller's order.
    """

    subtasks: tuple[str, ...]
    vectors: dict[str, torch.Tensor]
    reference_norms: dict[str, float]
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]

    def save(self, file: Path) -> None:
        """Writes one safetensors file atomically."""
        from safetensors.torch import save_file

        facts = {
            "subtasks": self.subtasks,
            "reference_norms": self.reference_norms,
            "losses": self.losses,
            "gradient_norms": self.gradient_norms,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        os.close(handle)
        tensors = {_PREFIX + name: vector.contiguous() for name, vector in self.vectors.items()}
        save_file(tensors, temporary, metadata={"directions": json.dumps(facts)})
        Path(temporary).replace(file)

    @classmethod
    def load(cls, file: Path) -> Directions:
        """Reads what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                facts = json.loads(opened.metadata()["directions"])
                vectors = {key.removeprefix(_PREFIX): opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"{file}: not readable as validation directions ({error}); delete the file") from error
        tuples = {name: tuple(facts[name]) for name in ("subtasks", "losses", "gradient_norms")}
        return cls(vectors=vectors, reference_norms=facts["reference_norms"], **tuples)


def question_votes(
    kind: QuestionGradients, norms: torch.Tensor, losses: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """The factor of each question's gradient in the sum that is the direction up to its scale, [Q, ...] float64.

    1 for `plain`, 1 / ‖ĝ_j‖ for `unit` and N_j P_j for `probability`.

    Args:
        kind: As in a recipe.
        norms: Of the questions' gradients, [Q, ...].
        losses: Of the questions, [Q, ...].
        lengths: N of each question (see `counted_length`), [Q].

    Raises:
        RecipeError: There is no such kind.
    """
    refuse_unknown("influence.question_gradients", kind, get_args(QuestionGradients))
    if kind == "plain":
        return torch.ones_like(norms, dtype=torch.float64)
    if kind == "unit":
        return norms.double().reciprocal()
    count = lengths.double().view(-1, *[1] * (losses.dim() - 1))
    return count * torch.exp(-count * losses.double())


def direction_scale(
    kind: QuestionGradients, votes: torch.Tensor, norms: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """S, the root mean square over all questions of the lengths of their gradients times their votes, [1, ...].

    Args:
        kind: As in a recipe.
        votes: Of the questions, [Q, ...].
        norms: Of their gradients, [Q, ...].
        dtype: Of the sums of gradients times votes.

    Raises:
        ModelError: No answer's probability can be told from 0.
    """
    scale = (votes * norms.double()).square().mean(0, keepdim=True).sqrt()
    if kind == "probability" and not bool((scale > _DIGITS * torch.finfo(dtype).tiny).all()):
        raise ModelError(
            f"the target gives none of the {len(norms)} validation answers a probability that can be told from 0, so "
            "question_gradients: probability has no direction; warm up longer, or set influence.question_gradients to "
            "plain"
        )
    return scale


def counted_length(encoded: Encoded) -> float:
    """What the sum of a sample's token losses is divided by in its loss: their number, of a mean."""
    return 1 / max(encoded.token_weights)


def directions_fingerprint(
    target: Target,
    checkpoint: Checkpoint,
    encoded: Sequence[Encoded],
    subtasks: Sequence[str],
    question_gradients: QuestionGradients = "plain",
) -> str:
    """Sixteen hex digits that change with the model, the checkpoint, the questions, their subtasks or their weights."""
    questions = [
        [item.id, item.input_ids, item.labels, item.weights, subtask]
        for item, subtask in zip(encoded, subtasks, strict=True)
    ]
    model = [target.fingerprint(), checkpoint.fingerprint, str(target.dtype), is_narrow(target.model)]
    facts = [4, *model, questions, question_gradients]
    return digest_of(facts)


def compute_directions(
    taps: GradientTaps,
    checkpoint: Checkpoint,
    encoded: Sequence[Encoded],
    subtasks: Sequence[str],
    options: ScoringOptions,
    estimator: Estimator,
) -> Directions:
    """One pass over the validation questions at one checkpoint.

    A question's norm is known only after its backward pass, so the gradients of one batch are held; batches are cut so
    that this takes at most half a gigabyte (or one question's gradient).

    Raises:
        ModelError: A question's gradient is zero or not finite, or no answer has a probability that can be told from 0.
        RecipeError: There is no such kind of question gradients.
    """
    target, question_gradients = taps.target, options.question_gradients
    batch_tokens, report = options.batch_tokens, options.report
    estimators = {each.identity: each for each in (*BUILT_IN.values(), estimator)}
    names = tuple(sorted(set(subtasks)))
    row = {name: i for i, name in enumerate(names)}
    target.load_checkpoint(checkpoint)
    vectors = {
        name: torch.zeros(len(names), *parameter.shape, dtype=target.dtype)
        for name, parameter in target.parameters.items()
    }
    counts = [list(subtasks).count(name) for name in names]
    bound = {
        name: {
            key: each.bind(moments_of(checkpoint, name, dtype=target.dtype, device=parameter.device))
            for key, each in estimators.items()
        }
        for name, parameter in target.parameters.items()
    }
    losses, norms = [0.0] * len(encoded), [0.0] * len(encoded)
    votes = torch.zeros(len(encoded), dtype=torch.float64)
    lengths = torch.tensor([counted_length(item) for item in encoded], dtype=torch.float64)
    squares = dict.fromkeys(estimators, 0.0)
    # Computed once and used for every score, so a 16-bit model computes them in float32, with twice the memory.
    narrow = is_narrow(target.model)
    with taps.attached(), in_float32() if narrow else nullcontext():
        for indices, batch in small_batches(target, encoded, batch_tokens // 2 if narrow else batch_tokens):
            held = _Hold()
            batch_losses = taps.run(batch, held)
            length = held.norms()
            for i, loss, norm in zip(indices, batch_losses.tolist(), length.tolist(), strict=True):
                losses[i], norms[i] = loss, norm
                if not (norm > 0 and math.isfinite(norm)):
                    raise ModelError(
                        f"validation question {encoded[i].id!r} has a gradient of norm {norm}, so it gives no "
                        "direction; remove it"
                    )
            rows = torch.tensor([row[subtasks[i]] for i in indices])
            # The scale is known only at the end.
            votes[indices] = question_votes(question_gradients, length, batch_losses.detach().cpu(), lengths[indices])
            for name, gradients in held.gradients.items():
                part = gradients * votes[indices].to(gradients).view(-1, *[1] * (gradients.dim() - 1))
                vectors[name].index_add_(0, rows, part.cpu())
                for key, direction in bound[name].items():
                    squares[key] += float(direction(gradients).double().square().sum())
            if report is not None:
                report(len(indices))
    scale = float(direction_scale(question_gradients, votes, torch.tensor(norms, dtype=torch.float64), target.dtype))
    for vector in vectors.values():
        vector.div_((torch.tensor(counts, dtype=torch.float64) * scale).to(vector).view(-1, *[1] * (vector.dim() - 1)))
    reference = {key: math.sqrt(total / len(encoded)) for key, total in squares.items()}
    return Directions(names, vectors, reference, tuple(losses), tuple(norms))


class _Hold:
    """A sink that keeps the gradients of one batch."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        before = self.gradients.get(name)
        self.gradients[name] = gradients if before is None else torch.cat([before, gradients])

    def norms(self) -> torch.Tensor:
        """[B], float64."""
        squares = [g.flatten(1).double().square().sum(1).cpu() for g in self.gradients.values()]
        return torch.stack(squares).sum(0).sqrt()
