"""Samples that begin alike as one sequence: what they share is computed once.

The pairs of a passage have the passage in common, and the replies to a rubric have its prompt. The samples' tokens form
a tree. In the sequence a token sees itself and its ancestors only, and their number is its position, so that each
sample's log-probabilities are those that it has alone. With four rubrics of a passage and two replies to each, a pass
reads a third of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from optimsyn.target.output_layer import OutputLayer, TokenLosses

# A prompt and a reply, as token ids.
Sample = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Tree:
    """Samples in one sequence.

    Attributes:
        ids: Token ids [T].
        positions: Number of each token's ancestors [T].
        sees: Whether a token (row) sees another (column), [T, T].
        before: For each token of a reply the place in the sequence that predicts it, [N].
        targets: The ids of those tokens, [N].
        samples: The samples that they are of, [N].
        count: Number of samples.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sees: torch.Tensor
    before: torch.Tensor
    targets: torch.Tensor
    samples: torch.Tensor
    count: int


def tree_of(samples: Sequence[Sample]) -> Tree:
    """Joins samples at their common beginnings.

    Raises:
        ValueError: A prompt has no token, or samples begin with different ones.
    """
    if any(not prompt or prompt[0] != samples[0][0][0] for prompt, _ in samples):
        raise ValueError("samples in one sequence must begin with the same token")
    places: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    parents: list[int] = []
    before, targets, owners = [], [], []
    for number, (prompt, reply) in enumerate(samples):
        place = -1
        for index, token in enumerate([*prompt, *reply]):
            if index >= len(prompt):
                before.append(place)
                targets.append(token)
                owners.append(number)
            if (place, token) not in places:
                places[place, token] = len(ids)
                ids.append(token)
                parents.append(place)
            place = places[place, token]
    sees = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for place, parent in enumerate(parents):
        if parent >= 0:
            sees[place] = sees[parent]
        sees[place, place] = True
    return Tree(
        ids=torch.tensor(ids),
        positions=sees.sum(1) - 1,
        sees=sees,
        before=torch.tensor(before),
        targets=torch.tensor(targets),
        samples=torch.tensor(owners),
        count=len(samples),
    )


def mean_log_probs(causal: Any, tree: Tree) -> torch.Tensor:
    """The mean log-probability of each sample's reply tokens, [samples].

    Args:
        causal: Gemma 3 with a frozen output layer; some of its layers see only so many tokens back.
        tree: On any device.
    """
    device, window = causal.device, causal.config.sliding_window
    positions = tree.positions.to(device)
    sees = tree.sees.to(device)
    near = sees & (positions[:, None] - positions[None, :] < window)
    hidden = causal.base_model(
        input_ids=tree.ids[None].to(device),
        position_ids=positions[None],
        attention_mask={"full_attention": sees[None, None], "sliding_attention": near[None, None]},
        use_cache=False,
    ).last_hidden_state[0]
    head = OutputLayer(causal.get_output_embeddings().weight, softcap=causal.config.final_logit_softcapping)
    losses = TokenLosses.apply(hidden[tree.before.to(device)], head, tree.targets.to(device), torch.is_grad_enabled())
    samples = tree.samples.to(device)
    totals = losses.new_zeros(tree.count).index_add(0, samples, losses)
    return -totals / torch.bincount(samples, minlength=tree.count)
