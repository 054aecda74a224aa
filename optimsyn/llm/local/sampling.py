"""Sampling of whole batches on the device: every row has its own temperature and its own stateless noise."""

from __future__ import annotations

import torch

# llama.cpp's defaults, so that a model samples the same way as from its server.
TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05

# SplitMix64 (Steele, Lea and Flood 2014). torch's integers are signed and wrap around.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_UNIFORM_BITS = 53


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(values: torch.Tensor) -> torch.Tensor:
    values = (values ^ _shifted(values, 30)) * _FIRST
    values = (values ^ _shifted(values, 27)) * _SECOND
    return values ^ _shifted(values, 31)


def uniforms(seeds: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in (0, 1), a hash of (seed, step, token): the same on every device and in every batch.

    Args:
        seeds: [B] int64.
        steps: [B] int64, the number of tokens that the row has.
        tokens: [B, K] int64.

    Returns:
        [B, K] float64.
    """
    rows = _mixed(_mixed(seeds * _STEP + _STEP) + steps * _STEP)
    bits = _shifted(_mixed(_mixed(rows.unsqueeze(1) + tokens * _STEP)), 64 - _UNIFORM_BITS)
    return (bits.double() + 0.5) * 2.0**-_UNIFORM_BITS


def draw(logits: torch.Tensor, temperatures: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """One token of each row, from the candidates of `truncated` at the row's temperature.

    Gumbel-max: the arg max of logits / T + g, with g standard Gumbel noise, is a sample of softmax(logits / T)
    (Gumbel 1954; Maddison et al. 2014, "A* sampling"). Only candidates need noise. There is no synchronisation with
    the host.

    Args:
        logits: [B, vocabulary].
        temperatures: [B] float64; 0 for greedy decoding.
        seeds: [B] int64.
        steps: [B] int64.

    Returns:
        [B] int64; of equal scores the smaller id.
    """
    values, tokens, keep = _candidates(logits, TOP_K, TOP_P, MIN_P)
    greedy = (temperatures == 0).unsqueeze(1)
    gumbel = -(-uniforms(seeds, steps, tokens).log()).log()
    scores = values.double() / temperatures.unsqueeze(1).masked_fill(greedy, 1.0) + gumbel.masked_fill(greedy, 0.0)
    scores = scores.masked_fill(~keep, float("-inf"))
    best = scores == scores.amax(1, keepdim=True)
    last = logits.shape[-1] - 1  # where every score is NaN, still a token
    return tokens.masked_fill(~best, last).amin(1)


def truncated(logits: torch.Tensor, top_k: int = TOP_K, top_p: float = TOP_P, min_p: float = MIN_P) -> torch.Tensor:
    """Logits [..., vocabulary] with all but the candidates at minus infinity; the most likely token always stays.

    Args:
        logits: Raw logits.
        top_k: The most candidates.
        top_p: The fewest candidates whose probability, among the top k, sums to at least this.
        min_p: No candidate less likely than this fraction of the most likely one.
    """
    values, tokens, keep = _candidates(logits, top_k, top_p, min_p)
    empty = torch.full(logits.shape, float("-inf"), dtype=values.dtype, device=logits.device)
    return empty.scatter(-1, tokens, values.masked_fill(~keep, float("-inf")))


def _candidates(
    logits: torch.Tensor, top_k: int, top_p: float, min_p: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values (at least float32), ids, and whether each is a candidate; all [..., K]."""
    # In the dtype of the logits: widening a whole vocabulary takes longer than finding its largest values.
    values, tokens = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    keep = (before < top_p) & (probabilities >= min_p * probabilities[..., :1])
    keep[..., 0] = True
    return values, tokens, keep
