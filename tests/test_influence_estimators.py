"""Γ against a real AdamW step, and the estimators' other formulae."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimsyn.base.errors import RecipeError
from optimsyn.influence.estimators import BUILT_IN, estimator_of, normalised
from optimsyn.influence.moments import Moments


def _history(seed: int, steps: int, scale: float) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(seed)
    parameter = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=generator))
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        parameter.grad = torch.randn(4, 3, dtype=torch.float64, generator=generator) * scale
        optimizer.step()
    return parameter, optimizer


def _moments(parameter: torch.nn.Parameter, optimizer: torch.optim.AdamW) -> Moments:
    state = optimizer.state[parameter]
    return Moments(state["exp_avg"].clone(), state["exp_avg_sq"].clone(), int(state["step"]), (0.9, 0.999), 1e-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.floats(-7, 2), st.floats(-9, 3))
def test_adam_is_the_step_of_a_real_adamw(seed: int, steps: int, scale: float, size: float) -> None:
    parameter, optimizer = _history(seed, steps, 10**scale)
    gradient = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)) * 10**size
    found = BUILT_IN["adam"].bind(_moments(parameter, optimizer))(gradient[None])[0]
    # From zero, so that the small step is not lost in the digits of the weights.
    with torch.no_grad():
        parameter.zero_()
    parameter.grad = gradient.clone()
    optimizer.step()
    torch.testing.assert_close(found, -parameter.detach() / 1e-2, rtol=1e-6, atol=1e-12)


def test_other_estimators_by_their_formulae() -> None:
    parameter, optimizer = _history(3, 7, 1e-3)
    moments = _moments(parameter, optimizer)
    m, v, t = moments.first, moments.second, 7
    g = torch.randn(2, 4, 3, dtype=torch.float64) * 1e-3
    before = g.clone()
    v_next = 0.999 * v + 0.001 * g**2
    expected = {
        "sgd": g,
        "adam_linear": g / ((v / (1 - 0.999**t)).sqrt() + 1e-8),
        "adam_momentum_free": 0.1 * g / (1 - 0.9**8) / ((v_next / (1 - 0.999**8)).sqrt() + 1e-8),
        "less": (0.9 * m + 0.1 * g) / (v_next + 1e-8).sqrt(),
    }
    for name, wanted in expected.items():
        torch.testing.assert_close(BUILT_IN[name].bind(moments)(g), wanted, rtol=1e-12, atol=1e-14)
        assert torch.equal(g, before), name
    assert {name for name, e in BUILT_IN.items() if e.linear} == {"sgd", "adam_linear"}


def test_zero_directions_score_zero_and_unknown_names_are_refused() -> None:
    dots, norms = torch.tensor([[0.0, 0.0], [1.0, -3.0]]), torch.tensor([[0.0], [2.0]])
    assert normalised(dots, norms).tolist() == [[0.0, 0.0], [0.5, -1.5]]
    with pytest.raises(RecipeError, match="there is no estimator .adamw.; did you mean .adam."):
        estimator_of("adamw")
