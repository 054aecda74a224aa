"""The target: the model that learns from the data, with the LoRA adapter whose gradients give the influence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as recompute

from optimsyn.base.errors import ModelError
from optimsyn.base.suggestions import nearest
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.recipe.recipe import Lora, ModelSpec, TargetSpec
from optimsyn.target.adapter import add_lora, outside_text
from optimsyn.target.encoding import Batch, Encoded, as_sample, encode, make_batches
from optimsyn.target.fingerprint import adapters_of, model_digest, refuse_idle_adapters
from optimsyn.target.label_loss import LabelLoss
from optimsyn.target.temporary import evaluating, with_forwards
from optimsyn.target.upcast import NARROW
from optimsyn.target.warm_up.checkpoints import Checkpoint
from optimsyn.target.warm_up.curve import Search, WarmUpCurve
from optimsyn.target.warm_up.search import CURVE, RECORD, Plan, WarmUpData, warm_up

_SEARCH = Search()


class Target:
    """A causal language model with a trainable adapter, its tokenizer and its warm-up checkpoints.

    Build it with `Target.load` (by name) or `Target.from_model` (a model in memory).

    Attributes:
        model: The peft model, or the model that was passed.
        tokenizer: Its tokenizer.
        device: The device of inputs.
        max_length: Longest prompt plus answer, in tokens.
        checkpoints: The checkpoints of `warm_up`, oldest first.
        curve: How the warm-up went; None before it, and for a warm-up of an older version.

    Example:
        >>> target = Target.load("embedded")                                         # doctest: +SKIP
        >>> target.warm_up(pairs, questions=questions)                               # doctest: +SKIP
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.name = name
        self.checkpoints: list[Checkpoint] = []
        self.curve: WarmUpCurve | None = None
        self.parameters: dict[str, torch.nn.Parameter] = {
            key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad
        }
        if not self.parameters:
            raise ModelError(f"target {name!r} has no trainable parameter; give it a LoRA or unfreeze a linear layer")
        # The names at this moment: adapters that are added later are no part of the target's identity.
        self._frozen = [key for key, _ in model.named_parameters() if key not in self.parameters]
        self._adapters = adapters_of(model)
        self.device = next(iter(model.parameters())).device
        self.pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self.label_loss = LabelLoss(self.causal)
        self._base: str | None = None
        self._near: tuple[Checkpoint, dict[str, torch.Tensor]] | None = None
        self._start: dict[str, torch.Tensor] = {}

    @classmethod
    def load(cls, spec: TargetSpec | ModelSpec | str, *, seed: int = 0) -> Target:
        """Loads a target by name and adds a fresh LoRA adapter, or trains `spec.full_weights` instead.

        Args:
            spec: The recipe's `models.target`, or a name: "embedded", a hub id or a local folder.
            seed: Of the adapter's initial values.

        Raises:
            ModelError: The model cannot be loaded, or has none of the layers to train.
        """
        from optimsyn.llm.local.loading import load_causal_lm

        if isinstance(spec, str):
            spec = TargetSpec(name=spec)
        elif not isinstance(spec, TargetSpec):
            spec = TargetSpec(**spec.model_dump())
        model, tokenizer = load_causal_lm(spec, trained=True)
        lora = None if spec.full_weights else spec.lora
        if spec.full_weights:
            train_full_weights(model, spec.full_weights)
        target = cls.from_model(model, tokenizer, lora=lora, max_length=spec.max_length, seed=seed)
        target.name = f"{spec.name}@{spec.revision}" if spec.revision else spec.name
        return target

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, lora: Lora | None, max_length: int = 640, seed: int = 0
    ) -> Target:
        """Makes a target from a model in memory.

        Args:
            model: A Hugging Face causal language model; changed in place when `lora` is given.
            tokenizer: Its tokenizer.
            lora: The adapter to add; None trains what already has `requires_grad` (a peft model, or linear layers that
                `train_full_weights` chose). A LoRA in 16 bits is converted to float32.
            max_length: Longest prompt plus answer, in tokens.
            seed: Of the adapter's initial values.

        Raises:
            ModelError: The model has none of the adapter's modules, or nothing to train.
        """
        if lora is not None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = add_lora(model, lora, field="models.target.lora")
        for key, parameter in model.named_parameters():
            # As peft does by default: in 16 bits an optimiser step is rounded away.
            if parameter.requires_grad and ".lora_" in key and parameter.dtype in NARROW:
                parameter.data = parameter.data.float()
        model.eval()
        return cls(model, tokenizer, max_length=max_length, name=type(model).__name__)

    @property
    def causal(self) -> Any:
        """The causal language model without its peft wrapper; adapters stay active inside its layers."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of gradients and scores: float32, or float64 for float64 weights."""
        return torch.promote_types(next(iter(self.parameters.values())).dtype, torch.float32)

    def encode(self, sample: Sample | Pair | Question) -> Encoded:
        """Tokens and labels of a sample, with its context cut from the left to fit `max_length`.

        Raises:
            ModelError: The answer is empty, or question and answer alone are too long.
        """
        return encode(self.tokenizer, as_sample(sample), self.max_length)

    def batches(
        self, samples: Sequence[Sample | Pair | Question | Encoded], batch_tokens: int = 2048
    ) -> Iterator[Batch]:
        """Right-padded batches of similar length; `Batch.indices` point into the caller's order.

        Raises:
            ModelError: As `encode`.
        """
        encoded = [item if isinstance(item, Encoded) else self.encode(item) for item in samples]
        return make_batches(encoded, batch_tokens, pad_id=self.pad_id, device=self.device)

    def losses(self, batch: Batch) -> torch.Tensor:
        """Loss of each sample, [B], in nats: its label tokens' mean, or their sum under the batch's weights.

        float32, or float64 of a float64 model.

        Logits are computed at label positions only. Gradients are kept when gradients are enabled.

        Raises:
            ModelError: A row has no label, so its loss is undefined.
        """
        _refuse_empty(batch)
        return self.label_loss(batch)

    def token_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of each of the N label tokens, [N], and the row [N] and column [N] where it stands in the batch.

        Raises:
            ModelError: As `losses`.
        """
        _refuse_empty(batch)
        return self.label_loss.tokens(batch.input_ids, batch.labels)

    def try_out(self, batch: Batch) -> None:
        """Decides once how this model's losses are computed. Do not call it while layers are replaced.

        Raises:
            ModelError: The model's predictions depend on later tokens.
        """
        self.label_loss.try_out(batch.input_ids)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Evaluation mode (dropout off) with gradients enabled; restores the earlier modes afterwards.

        Hugging Face recomputes activations in training mode only. Layers with gradient checkpointing do it here too.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = (m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer))
        recomputed = [
            (layer, partial(recompute, layer.forward, use_reentrant=False))
            for layer in layers
            if layer.gradient_checkpointing
        ]
        with evaluating(self.model), with_forwards(recomputed), torch.enable_grad():
            yield

    def warm_up(  # noqa: PLR0913 - a user names the settings, which all have a default
        self,
        pairs: Sequence[Pair | Question | Sample],
        *,
        questions: Sequence[Pair | Question | Sample] = (),
        unseen: Sequence[Pair | Question | Sample] = (),
        steps: int | None = None,
        lr: float | None = None,
        search: Search = _SEARCH,
        batch_size: int = 4,
        checkpoints: int = 1,
        max_grad_norm: float = 1.0,
        seed: int = 0,
        folder: Path | None = None,
        batch_tokens: int = 2048,
        report: Callable[[int, int], None] | None = None,
    ) -> list[Checkpoint]:
        """Trains the adapter with AdamW and keeps weights and moments by parameter name.

        With `questions` it searches its learning rate and ends when the form of an answer is learned and before pairs
        that it does not train on get worse (`optimsyn.target.warm_up.curve` has the rules); `self.curve` says how it
        went. Without them it takes 12 steps at 2e-4. `steps` and `lr` override this.

        The loss is the mean over samples of their mean token loss, as the influence assumes; moments come from the
        clipped gradient of the batch.

        Args:
            pairs: What to train on.
            questions: Validation questions to look at.
            unseen: Pairs to look at, not among `pairs`; empty holds out a share of `pairs` (`search.held_out`).
            steps: Optimiser steps; None searches them.
            lr: Constant learning rate; None searches it.
            search: How to search steps and learning rate.
            batch_size: Samples per step.
            checkpoints: How many checkpoints to spread over the steps (over the looks where steps are searched); the
                last step always has one.
            max_grad_norm: Gradient clipping.
            seed: Of the order of samples and of dropout.
            folder: Keep checkpoints and curve here. A folder with a warm-up of the same model, pairs and settings is
                loaded instead.
            batch_tokens: Tokens per forward pass; does not change the result.
            report: Called after each step with the steps done and the maximum number of steps.

        Returns:
            The checkpoints, also in `self.checkpoints`; the model is left at the last one.

        Raises:
            ModelError: No pairs, a pair that cannot be encoded, or a loss that is not finite.
        """
        plan = Plan(steps, lr, search, batch_size, checkpoints, max_grad_norm, seed, batch_tokens)
        self.checkpoints, self.curve = warm_up(self, WarmUpData(pairs, questions, unseen), plan, folder, report)
        return self.checkpoints

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Puts the checkpoint's weights into the model.

        Raises:
            ModelError: The checkpoint belongs to another adapter, or the adapter is not active in the model.
        """
        refuse_idle_adapters(self.model, self._adapters)
        if set(checkpoint.state) != set(self.parameters):
            odd = sorted(set(checkpoint.state) ^ set(self.parameters))
            raise ModelError(
                f"the checkpoint of step {checkpoint.step} belongs to another adapter: {odd[0]!r} is only on one side "
                f"({len(odd)} such names); use the same lora settings or warm up again"
            )
        if self.device.type != "cpu" and (self._near is None or self._near[0] is not checkpoint):
            # Every score loads it, and copying from main memory to a GPU is slow.
            near = {name: checkpoint.state[name].to(parameter.device) for name, parameter in self.parameters.items()}
            self._near = checkpoint, near
        state = checkpoint.state if self._near is None or self._near[0] is not checkpoint else self._near[1]
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if checkpoint.state[name].shape != parameter.shape:
                    raise ModelError(
                        f"{name}: the checkpoint has shape {tuple(checkpoint.state[name].shape)}, the model "
                        f"{tuple(parameter.shape)}; use the same lora settings or warm up again"
                    )
                parameter.copy_(state[name])

    def remember_start(self) -> None:
        """Keeps the trained parameters as they are now, in main memory, for `restart`."""
        self._start = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}

    def restart(self) -> None:
        """Puts back what `remember_start` kept, and forgets the checkpoints, for another warm-up.

        Raises:
            ModelError: Nothing was kept.
        """
        if not self._start:
            raise ModelError(f"target {self.name!r}: call remember_start before the first warm-up, then restart")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self._start[name])
        self.checkpoints, self.curve, self._near = [], None, None

    def add_checkpoints_from(self, folder: Path) -> list[Checkpoint]:
        """Reads the checkpoints of a finished `warm_up` in `folder` and loads the last one.

        Raises:
            ModelError: The warm-up did not finish, a file is damaged, or the adapter differs.
        """
        try:
            steps = json.loads((folder / RECORD).read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: holds no finished warm-up ({error}); run the warm-up first") from error
        loaded = [Checkpoint.load(folder / f"step-{step:06d}") for step in steps]
        self.load_checkpoint(loaded[-1])
        self.checkpoints = loaded
        self.curve = WarmUpCurve.load(folder / CURVE) if (folder / CURVE).is_file() else None
        return loaded

    def fingerprint(self) -> str:
        """Sixteen hex digits of the frozen model, the shape and the scale of the adapter and `max_length`.

        It reads a few hundred values of each frozen weight, which is quick and tells models and revisions apart.
        """
        if self._base is None:
            self._base = model_digest(
                self.model, self.causal, self.parameters, self._frozen, self._adapters, self.max_length
            )
        return self._base


def train_full_weights(model: Any, patterns: Sequence[str]) -> list[str]:
    r"""Freezes a model except for the linear layers (weight and bias) that the patterns name.

    Args:
        model: Changed in place.
        patterns: Regular expressions; each must match a layer's whole name or the end of it after a dot, as in
            `down_proj` or `layers\.(0|1)\.mlp\.down_proj`.

    Returns:
        The names of the layers.

    Raises:
        ModelError: A pattern is not a regular expression, or matches no linear layer.
    """
    outside = tuple(f"{part}." for part in outside_text(model))
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(outside)
    }
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            expression = re.compile(rf"(?:.*\.)?(?:{pattern})")
        except re.error as error:
            problem = f"models.target.full_weights: {pattern!r} is not a regular expression ({error})"
            raise ModelError(problem) from error
        matching = [name for name in linear if expression.fullmatch(name)]
        if not matching:
            layers = sorted({name.rpartition(".")[2] for name in linear}) + list(linear)
            near = nearest(pattern, layers, cutoff=0.0)
            raise ModelError(
                f"models.target.full_weights: {pattern!r} matches no linear layer of the model"
                + (f"; the nearest is {near!r}" if near else ", which has none")
            )
        chosen.update(matching)
    model.requires_grad_(False)
    for name in chosen:
        linear[name].requires_grad_(True)
    return [name for name in linear if name in chosen]


def _refuse_empty(batch: Batch) -> None:
    empty = (batch.labels[:, 1:] == -100).all(dim=1).nonzero().flatten().tolist()
    if empty:
        names = ", ".join(repr(batch.ids[i]) for i in empty)
        raise ModelError(f"samples {names} have no label token, so their loss is undefined; remove them")
