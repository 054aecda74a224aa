r"""Estimators: they map one sample's gradient g to the direction Γ in which it moves the weights.

With Adam's moments m, v after t steps, the direction of step t+1 on g (without weight decay) is

    m' = β1 m + (1-β1) g      v' = β2 v + (1-β2) g²      Γ(g) = (m'/(1-β1^{t+1})) / (√(v'/(1-β2^{t+1})) + ε)

| name               | Γ                                                                                    |
|--------------------|--------------------------------------------------------------------------------------|
| adam               | as above, exactly Δθ/(-lr) of `torch.optim.AdamW` without weight decay               |
| adam_momentum_free | as above with m := 0, so that only the sample counts                                 |
| adam_linear        | g / (√(v/(1-β2^t)) + ε), linear in g                                                 |
| sgd                | g                                                                                    |
| less               | m' / √(v' + ε), no bias correction: the variant of LESS (Xia et al. 2024), to compare |

Every estimator works elementwise, so it can be applied layer by layer. A recipe names a custom one like a built-in one
(`EstimatorPart`; docs/extend/estimator.md).
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch

from optimsyn.base import extensions
from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.base.source_identity import source_identity
from optimsyn.influence.moments import Moments

Direction = Callable[[torch.Tensor], torch.Tensor]
"""From gradients [B, *shape] of one parameter to directions Γ [B, *shape]; never changes its argument."""


class EstimatorPart(Protocol):
    """The interface of a custom estimator: an object like this, or a class that makes one without arguments.

    Attributes:
        linear: Whether Γ(g) is D ⊙ g with a D that does not depend on g. Then methods twin and forward can compute
            its scores (with `normalization: dot`). Optional; False by default.
    """

    linear: bool

    def bind(self, moments: Moments) -> Direction:
        """Γ for one parameter at one warm-up checkpoint.

        Called once for each trained parameter, or for some of its rows; do here what does not depend on the sample.

        Args:
            moments: Adam's `first` and `second` [*shape], `step`, `betas` and `eps` at the checkpoint.

        Returns:
            A function from gradients [B, *shape] of B samples to directions of the same shape and dtype. It treats
            each sample and each element separately, and does not change its argument. The score is the dot product of
            the direction with the gradient of the validation questions, so weights move *against* the direction: `sgd`
            returns the gradient itself.
        """

    # An optional method `gain(moments) -> Direction` gives D(g) of Γ(g) = c + D(g) ⊙ g, where c comes from momentum;
    # token shares need it for estimators with Γ(0) ≠ 0.


class Estimator(ABC):
    """Turns gradients into directions.

    Attributes:
        linear: Γ(g) is linear in g, so that its dot product is a directional derivative of the sample's own loss.
    """

    name: str
    linear: bool = False

    @property
    def identity(self) -> str:
        """Its unique name; that of a custom estimator changes with its source."""
        return self.name

    @abstractmethod
    def bind(self, moments: Moments) -> Direction:
        """Γ for one parameter at one checkpoint; computes beforehand what does not depend on the sample."""

    @abstractmethod
    def gain(self, moments: Moments) -> Direction:
        """D(g) of Γ(g) = c(g) + D(g) ⊙ g, the factor of the sample's own gradient; c comes from momentum.

        Both parts see the same gradient in their denominator. c is 0 for estimators without momentum.
        """


class Adam(Estimator):
    """The exact direction of AdamW's next step."""

    name = "adam"

    def bind(self, moments: Moments) -> Direction:
        """See the module's formula."""
        root, share = self._root(moments), self._share(moments)
        beta1 = moments.betas[0]
        first = moments.first * (beta1 / (1 - beta1 ** (moments.step + 1)))
        return lambda gradient: torch.add(first, gradient, alpha=share).div_(root(gradient))

    def gain(self, moments: Moments) -> Direction:
        """Its share of m' over the root that Γ has."""
        root, share = self._root(moments), self._share(moments)
        return lambda gradient: root(gradient).reciprocal_().mul_(share)

    @staticmethod
    def _share(moments: Moments) -> float:
        beta1 = moments.betas[0]
        return (1 - beta1) / (1 - beta1 ** (moments.step + 1))

    @staticmethod
    def _root(moments: Moments) -> Direction:
        """√(v'/c) + ε with c = 1-β2^{t+1}, which is √(v β2/c + g² (1-β2)/c) + ε: constants are folded into v."""
        beta2 = moments.betas[1]
        fix = 1 - beta2 ** (moments.step + 1)
        second, share = moments.second * (beta2 / fix), (1 - beta2) / fix
        return lambda gradient: torch.addcmul(second, gradient, gradient, value=share).sqrt_().add_(moments.eps)


class AdamMomentumFree(Adam):
    """AdamW's next step had the first moment been 0."""

    name = "adam_momentum_free"

    def bind(self, moments: Moments) -> Direction:
        """See the module's formula."""
        beta2, share = moments.betas[1], self._share(moments)
        # The share is folded into the root: four passes over the gradients instead of six.
        fix = (1 - beta2 ** (moments.step + 1)) * share**2
        second, rise, eps = moments.second * (beta2 / fix), (1 - beta2) / fix, moments.eps / share
        return lambda gradient: gradient / torch.addcmul(second, gradient, gradient, value=rise).sqrt_().add_(eps)


class AdamLinear(Estimator):
    """The gradient under Adam's preconditioner of this moment."""

    name = "adam_linear"
    linear = True

    def bind(self, moments: Moments) -> Direction:
        """See the module's formula."""
        scale = self._scale(moments)
        return lambda gradient: gradient * scale

    def gain(self, moments: Moments) -> Direction:
        """A constant."""
        scale = self._scale(moments)
        return lambda gradient: scale.expand_as(gradient)

    @staticmethod
    def _scale(moments: Moments) -> torch.Tensor:
        if moments.step < 1:
            raise ValueError("adam_linear needs at least one optimiser step; before that v is empty")
        return 1 / ((moments.second / (1 - moments.betas[1] ** moments.step)).sqrt() + moments.eps)


class Sgd(Estimator):
    """The gradient itself."""

    name = "sgd"
    linear = True

    def bind(self, moments: Moments) -> Direction:
        """The identity."""
        return lambda gradient: gradient

    def gain(self, moments: Moments) -> Direction:
        """1 everywhere."""
        return torch.ones_like


class Less(Estimator):
    """The direction of the published LESS code: ε inside the root, no bias correction."""

    name = "less"

    def bind(self, moments: Moments) -> Direction:
        """See the module's formula."""
        root, beta1 = self._root(moments), moments.betas[0]
        first = moments.first * beta1
        return lambda gradient: torch.add(first, gradient, alpha=1 - beta1).div_(root(gradient))

    def gain(self, moments: Moments) -> Direction:
        """1-β1 over the root that Γ has."""
        root, share = self._root(moments), 1 - moments.betas[0]
        return lambda gradient: root(gradient).reciprocal_().mul_(share)

    @staticmethod
    def _root(moments: Moments) -> Direction:
        beta2 = moments.betas[1]
        second = moments.second * beta2 + moments.eps
        return lambda gradient: torch.addcmul(second, gradient, gradient, value=1 - beta2).sqrt_()


class OwnEstimator(Estimator):
    """A custom estimator.

    Raises:
        RecipeError: Its source is not known, or its class cannot be made without arguments.
    """

    def __init__(self, name: str, part: Any) -> None:
        self.name = name
        try:
            self._part: Any = part() if isinstance(part, type) else part
        except Exception as error:
            raise RecipeError(
                f"influence.estimator: {name!r} cannot be made without arguments ({type(error).__name__}: {error}); "
                "give its parameters defaults, or name an object of the class"
            ) from error
        self.linear = bool(getattr(self._part, "linear", False))
        source = source_identity(name, part, "influence.estimator")
        self._identity = f"{name} {hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]}"

    @property
    def identity(self) -> str:
        """Name and source."""
        return self._identity

    def bind(self, moments: Moments) -> Direction:
        """Γ of the part.

        Raises:
            ModelError: It raised, or gave something else than directions like the gradients.
        """
        try:
            gamma = self._part.bind(moments)
        except Exception as error:
            raise self._failed("bind", error) from error
        if not callable(gamma):
            raise ModelError(f"influence.estimator: bind of {self.name} gave {gamma!r}, not a function of gradients")

        def direction(gradients: torch.Tensor) -> torch.Tensor:
            try:
                directions: object = gamma(gradients)
            except Exception as error:
                raise self._failed("the function that bind gave", error) from error
            if (
                not isinstance(directions, torch.Tensor)
                or directions.shape != gradients.shape
                or directions.dtype != gradients.dtype
            ):
                what = (
                    f"{list(directions.shape)} of {directions.dtype}"
                    if isinstance(directions, torch.Tensor)
                    else repr(directions)
                )
                raise ModelError(
                    f"influence.estimator: {self.name} gave {what} for gradients {list(gradients.shape)} of "
                    f"{gradients.dtype}; directions have the gradients' shape and dtype"
                )
            return directions

        return direction

    def _failed(self, what: str, error: Exception) -> ModelError:
        return ModelError(
            f"influence.estimator: {what} of {self.name} raised {type(error).__name__}: {error}; fix it and run again"
        )

    def gain(self, moments: Moments) -> Direction:
        """The part's `gain`; without one, derived from Γ where there is no momentum.

        Raises:
            ModelError: There is momentum, Γ(0) ≠ 0.
        """
        if hasattr(self._part, "gain"):
            return self._part.gain(moments)  # type: ignore[no-any-return]
        gamma = self.bind(moments)
        if self.linear:
            return lambda gradient: gamma(torch.ones_like(gradient))
        if bool(gamma(torch.zeros_like(moments.first)[None]).any()):
            raise ModelError(
                f"influence.estimator: {self.name} gives a direction to a gradient of 0, so its score has no token "
                "shares; add a method gain(moments) that returns the factor of a sample's own gradient"
            )
        return lambda gradient: torch.where(gradient == 0, 0.0, gamma(gradient) / gradient)


BUILT_IN: dict[str, Estimator] = {e.name: e for e in (Adam(), AdamMomentumFree(), AdamLinear(), Sgd(), Less())}
extensions.ESTIMATORS.provide(
    BUILT_IN,
    extensions.methods(("bind",), "an estimator has bind(moments), which gives a function of gradients", "moments"),
)


def estimator_of(name: str) -> Estimator:
    """The estimator of this name."""
    if name == "simulated":
        raise RecipeError(
            "influence.estimator: simulated is not the direction of a single gradient but a simulated training, which "
            "only `SimulatedScorer` gives; stores and twins need such a direction: set it to adam_linear"
        )
    if name in BUILT_IN:
        return BUILT_IN[name]
    return OwnEstimator(name, extensions.ESTIMATORS.get(name))


def normalised(dots: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Dots / norms, and 0 where the norm is 0 (a sample that moves nothing has no influence, not NaN)."""
    return torch.where(norms > 0, dots / norms.clamp_min(math.ulp(0.0)), torch.zeros_like(dots))
