"""The scores of samples, the result of every scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optimsyn.base.counting import plural
from optimsyn.base.errors import ModelError
from optimsyn.base.terminal.table import Shown, Table, decimals_for, fixed


def _quantiles(values: Sequence[float]) -> list[str]:
    import statistics

    if not values:
        return ["–"] * 6
    ordered = sorted(values)
    quarters = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    decimals = decimals_for(ordered)
    return [fixed(value, decimals) for value in (ordered[0], *quarters, ordered[-1], statistics.fmean(ordered))]


def across_subtasks(by_subtask: torch.Tensor, across: str) -> torch.Tensor:
    """Scores by subtask [n, k] -> [n], their mean or max."""
    if not len(by_subtask):
        return torch.zeros(0, dtype=torch.float64)
    return by_subtask.mean(dim=1) if across == "mean" else by_subtask.max(dim=1).values


def refuse_not_finite(ids: Sequence[str], finite: torch.Tensor) -> None:
    """Refuses samples whose score is not finite."""
    bad = [repr(ids[i]) for i in (~finite).nonzero().flatten().tolist()]
    if bad:
        raise ModelError(f"the influence of samples {', '.join(bad)} is not finite; look at their text")


@dataclass(frozen=True)
class Scores(Shown):
    """Scores of n samples, in the caller's order; tensors are float64 on the CPU.

    Attributes:
        ids: The samples' ids.
        subtasks: Names of the columns of `by_subtask`.
        total: [n], mean or max of `by_subtask`.
        by_subtask: [n, k].
        gradient_norm: [n], ‖g‖, weighted over checkpoints; None where no gradient was computed.
        loss: [n], over the tokens that count, in nats, weighted over checkpoints.
        label_tokens: [n] int64, the tokens that count.
        token_shares: For each sample the share [label tokens] of its total that each label token brings; None unless
            requested. They sum to the total minus the contribution of momentum alone (see
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

    @classmethod
    def finished(cls, ids: Sequence[str], subtasks: Sequence[str], across: str, **columns: Any) -> Scores:
        """Checks scores by subtask and adds the total of each sample.

        Args:
            ids: As above.
            subtasks: As above.
            across: mean or max.
            columns: The other attributes, except `total`.

        Raises:
            ModelError: A score is not finite.
        """
        by_subtask = columns["by_subtask"]
        refuse_not_finite(ids, torch.isfinite(by_subtask).all(dim=1))
        return cls(tuple(ids), tuple(subtasks), across_subtasks(by_subtask, across), **columns)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Scores({len(self)} samples, subtasks {', '.join(self.subtasks)})"

    def _table(self) -> Table:
        columns: list[tuple[str, Sequence[float]]] = [("influence", self.total.tolist())]
        if len(self.subtasks) > 1:
            columns += [(name, self.by_subtask[:, place].tolist()) for place, name in enumerate(self.subtasks)]
        if self.gradient_norm is not None:
            columns.append(("gradient norm", self.gradient_norm.tolist()))
        columns += [("loss", self.loss.tolist()), ("answer tokens", [float(n) for n in self.label_tokens.tolist()])]
        rows = tuple((name.replace("_", " "), *_quantiles(values)) for name, values in columns)
        note = "" if self.token_shares is None else "With the share of each answer token in `token_shares`."
        return Table(
            f"Scores of {plural(len(self), 'sample')}",
            ("what", "lowest", "25%", "median", "75%", "highest", "mean"),
            rows,
            frozenset(range(1, 7)),
            note,
        )
