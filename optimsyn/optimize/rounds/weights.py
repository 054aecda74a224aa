"""The weights of the policy's adapter, and how far a policy is from the one that it began as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.base.seeds import derive_seed
from optimsyn.target.upcast import computing

if TYPE_CHECKING:
    import torch

    from optimsyn.optimize.policy_task import PolicyTask

    Weights = Mapping[str, torch.Tensor]

# Rubrics whose tokens the divergence is the mean of, where none are at hand: some two hundred tokens.
_FRESH = 4


def weights_of(model: Any) -> Weights:
    """A copy of the adapter's weights."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def put_weights(model: Any, weights: Weights) -> None:
    """Gives the adapter these weights.

    Raises:
        ModelError: They are those of another adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if odd := set(weights) ^ set(get_peft_model_state_dict(model, save_embedding_layers=False)):
        raise ModelError(f"the weights of a trained policy do not fit this model: {min(odd)} is in one of them only")
    set_peft_model_state_dict(model, dict(weights))


def saved_weights(adapter: Path) -> Weights:
    """The weights in an adapter's folder."""
    from peft import load_peft_weights

    weights: Weights = load_peft_weights(str(adapter), device="cpu")
    return weights


@contextmanager
def _as_it_began(model: Any, start: Weights | None) -> Iterator[None]:
    """The model with the adapter that it began with; None: without an adapter."""
    if start is None:
        with model.disable_adapter():
            yield
        return
    now = weights_of(model)
    put_weights(model, start)
    try:
        yield
    finally:
        put_weights(model, now)


def kl_per_token(model: Any, start: Weights | None, rubrics: Sequence[tuple[list[int], list[int]]]) -> float | None:
    """KL(policy || policy at the start) of the next token, in nats, a mean over the tokens of rubrics of the policy.

    Over the whole vocabulary at temperature 1 at each token, so it has less noise than the log-ratio of what was
    sampled and is never negative. In float32: two 16-bit passes of nearly the same model are .01 nats apart.

    Args:
        model: The policy, a peft model.
        start: The weights that it began with; None: no adapter.
        rubrics: Tokens of prompt and rubric; without any, the result is None.
    """
    import torch

    total, tokens = 0.0, 0
    training = model.training
    model.eval()

    def log_probs(prompt: list[int], completion: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + completion], device=model.device)
        with torch.no_grad(), computing(model, "float32"):
            logits: torch.Tensor = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[
                0, -len(completion) - 1 : -1
            ]
        return logits.float().log_softmax(-1)

    for prompt, completion in rubrics:
        now = log_probs(prompt, completion)
        with _as_it_began(model, start):
            before = log_probs(prompt, completion)
        total += float((now.exp() * (now - before)).sum())
        tokens += len(completion)
    model.train(training)
    return max(0.0, total / tokens) if tokens else None


def kl_on_fresh_rubrics(task: PolicyTask, model: Any, tokenizer: Any, start: Weights | None) -> float | None:
    """`kl_per_token` on rubrics that are sampled for it, one for each of a few passages, and not judged."""
    passages = task.passages[:_FRESH]
    seeds = [derive_seed(task.seed, "kl", passage.id) for passage in passages]
    rows = [
        task.row(tokenizer, passage, 0, task.shape.kind_for(seed))
        for passage, seed in zip(passages, seeds, strict=True)
    ]
    sampled = task.sample_all(model, tokenizer, rows, seeds, count=1)
    rubrics = [(rubric.prompt, rubric.completion) for (rubric,) in sampled]
    return kl_per_token(model, start, rubrics)
