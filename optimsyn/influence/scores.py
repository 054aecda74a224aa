"""The scores of samples: what every scorer gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optimsyn.base.table import Shown, Table, decimals_for, fixed


def scores_table(scores: Scores) -> Table:
    """Quantiles of the scores, in all and by subtask."""
    columns: list[tuple[str, Sequence[float]]] = [("influence", scores.total.tolist())]
    if len(scores.subtasks) > 1:
        columns += [(name, scores.by_subtask[:, place].tolist()) for place, name in enumerate(scores.subtasks)]
    if scores.gradient_norm is not None:
        columns.append(("gradient norm", scores.gradient_norm.tolist()))
    columns += [("loss", scores.loss.tolist()), ("answer tokens", [float(n) for n in scores.label_tokens.tolist()])]
    rows = tuple((name.replace("_", " "), *_quantiles(values)) for name, values in columns)
    note = "" if scores.token_shares is None else "With the share of each answer token in `token_shares`."
    return Table(
        f"Scores of {len(scores):,} samples",
        ("what", "lowest", "25%", "median", "75%", "highest", "mean"),
        rows,
        frozenset(range(1, 7)),
        note,
    )


def _quantiles(values: Sequence[float]) -> list[str]:
    import statistics

    if not values:
        return ["–"] * 6
    ordered = sorted(values)
    quarters = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    decimals = decimals_for(ordered)
    return [fixed(value, decimals) for value in (ordered[0], *quarters, ordered[-1], statistics.fmean(ordered))]


@dataclass(frozen=True)
class Scores(Shown):
    """Scores of n samples, in the caller's order; tensors are float64 on the CPU.

    Attributes:
        ids: The samples' ids.
        subtasks: Names of the columns of `by_subtask`.
        total: [n], mean or max of `by_subtask`.
        by_subtask: [n, k].
        gradient_norm: [n], ‖g‖, weighted over checkpoints; None where no gradient was formed.
        loss: [n], over the tokens that count, in nats, weighted over checkpoints.
        label_tokens: [n] int64, the tokens that count.
        token_shares: For each sample the share [label tokens] of its total that each label token brings, None where
            not asked for. They sum to the total, less what momentum alone contributes to it (see
            `optimsyn.influence.token_attribution`); with the max across subtasks they split the winning subtask's
            score.
    """

    ids: tuple[str, ...]
    subtasks: tuple[str, ...]
    total: torch.Tensor
    by_subtask: torch.Tensor
    gradient_norm: torch.Tensor | None
    loss: torch.Tensor
    label_tokens: torch.Tensor
    token_shares: tuple[torch.Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Scores({len(self)} samples, subtasks {', '.join(self.subtasks)})"

    def _table(self) -> Table:
        return scores_table(self)
