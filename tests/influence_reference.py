"""Influence written out the long way: one sample at a time, plain autograd, every formula on one float64 vector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from influence_helpers import by_hand, byte_tokenizer, flat, plain_gradient, tiny, tiny_target

from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

MAKES = ("lora", "full", "reused")


def reference_gamma(name: str, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, t: int) -> torch.Tensor:
    """The formulae once more, written out on one long vector."""
    b1, b2, eps = 0.9, 0.999, 1e-8
    m1, v1 = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    c1, c2 = 1 - b1 ** (t + 1), 1 - b2 ** (t + 1)
    if name == "adam":
        return (m1 / c1) / ((v1 / c2).sqrt() + eps)
    if name == "adam_momentum_free":
        return ((1 - b1) * g / c1) / ((v1 / c2).sqrt() + eps)
    if name == "adam_linear":
        return g / ((v / (1 - b2**t)).sqrt() + eps)
    if name == "less":
        return m1 / (v1 + eps).sqrt()
    return g


def put(target: Target, checkpoint: Checkpoint) -> None:
    with torch.no_grad():
        for key, parameter in target.parameters.items():
            parameter.copy_(checkpoint.state[key])


def reference_gradients(target: Target, questions: Sequence[Any], pairs: Sequence[Any]) -> list[list[torch.Tensor]]:
    """The flat gradient of each question's loss, then of each pair's, at each checkpoint."""
    encoded = [by_hand(target, item, "question") for item in questions]
    encoded += [by_hand(target, item, "pair") for item in pairs]
    found = []
    for checkpoint in target.checkpoints:
        put(target, checkpoint)
        found.append([flat(plain_gradient(target, item)) for item in encoded])
    return found


def probability_votes(target: Target, questions: Sequence[Any]) -> torch.Tensor:
    """The number of an answer's tokens times their joint probability: -∇P in gradients of the mean loss."""
    votes = []
    with torch.no_grad():
        for question in questions:
            encoded = by_hand(target, question, "question")
            ids = torch.tensor(encoded.input_ids)
            logits = target.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            told = [logits[i - 1, label] for i, label in enumerate(encoded.labels) if label != -100]
            votes.append(len(told) * torch.stack(told).sum().exp())
    return torch.stack(votes)


def reference_scores(
    target: Target,
    questions: list[Any],
    pairs: list[Any],
    name: str,
    cosine: bool,
    gradients: list[list[torch.Tensor]] | None = None,
    question_gradients: str = "plain",
) -> tuple[list[str], torch.Tensor]:
    """Subtasks and scores [n, k]; `gradients` are those of `reference_gradients`, when they are known already."""
    subtasks = sorted({q.subtask for q in questions})
    lr = sum(c.lr for c in target.checkpoints)
    scores = torch.zeros(len(pairs), len(subtasks), dtype=torch.float64)
    gradients = gradients or reference_gradients(target, questions, pairs)
    for checkpoint, everything in zip(target.checkpoints, gradients, strict=True):
        m, v = flat(checkpoint.exp_avg), flat(checkpoint.exp_avg_sq)
        val, own = everything[: len(questions)], everything[len(questions) :]
        rms = torch.stack([reference_gamma(name, g, m, v, checkpoint.step).norm() ** 2 for g in val]).mean().sqrt()
        usual = (sum(float(g @ g) for g in val) / len(val)) ** 0.5
        votes = torch.ones(len(val), dtype=torch.float64)
        if question_gradients == "probability":
            put(target, checkpoint)
            votes = probability_votes(target, questions)
            usual = float((votes * torch.stack([g.norm() for g in val])).square().mean().sqrt())
        for i, gradient in enumerate(own):
            gamma = reference_gamma(name, gradient, m, v, checkpoint.step)
            scale = gamma.norm() if cosine else rms
            for k, subtask in enumerate(subtasks):
                mine = [j for j, q in enumerate(questions) if q.subtask == subtask]
                sizes = [
                    float(val[j].norm()) if question_gradients == "unit" else usual / float(votes[j]) for j in mine
                ]
                mean = sum(float(val[j] @ gamma / scale) / size for j, size in zip(mine, sizes, strict=True)) / len(
                    mine
                )
                scores[i, k] += checkpoint.lr / lr * mean
    return subtasks, scores


def exact_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Hugging Face's norms round to float32 on the way, which alone is worth 1e-7; these stay in float64."""
    gemma = "Gemma" in type(module).__name__
    weight, eps = (1 + module.weight, module.eps) if gemma else (module.weight, module.variance_epsilon)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def random_target(kind: str, make: str, *, seed: int, checkpoints: int, recompute: bool = False) -> Target:
    """A tiny float64 target with random weights and random moments of sizes as they are after a warm-up.

    `make`: a LoRA in every layer, a few full-weight linear layers (one with a bias), or layers and weights that are
    used several times.
    """
    if make == "lora":
        target = tiny_target(kind, seed=seed, warm=False)
    else:
        model = tiny(kind, seed=seed, layers=3 if kind == "llama" else 2).requires_grad_(False)
        layers = model.model.layers
        if make == "full":
            layers[0].self_attn.o_proj.requires_grad_(True)
            layers[1].mlp.down_proj = torch.nn.Linear(24, 16, bias=True).double()
        else:
            layers[1].self_attn.q_proj = layers[0].self_attn.q_proj
            layers[-1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
            layers[0].self_attn.q_proj.weight.requires_grad_(True)
            layers[0].mlp.up_proj.weight.requires_grad_(True)
        target = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    for module in target.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(exact_norm, module)
    if recompute:
        target.causal.gradient_checkpointing_enable()
    generator = torch.Generator().manual_seed(seed + 7)

    def like(scale: float) -> dict[str, torch.Tensor]:
        return {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale
            for name, p in target.parameters.items()
        }

    for i in range(checkpoints):
        moved, roots = like(0.05), like(1e-3)
        state = {name: p.detach() + moved[name] for name, p in target.parameters.items()}
        second = {name: root.square() for name, root in roots.items()}
        target.checkpoints.append(Checkpoint(3 + 5 * i, 10.0**-i, state, like(1e-3), second))
    return target
