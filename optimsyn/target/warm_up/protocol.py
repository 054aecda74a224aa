"""The interface of a target that a warm-up trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.target.encoding import Batch, Encoded
from optimsyn.target.warm_up.checkpoints import Checkpoint
from optimsyn.target.warm_up.curve import WarmUpCurve


class Trainee(Protocol):
    """A model with trained parameters, such as `optimsyn.target.target.Target`, which documents each member."""

    model: Any
    parameters: dict[str, torch.nn.Parameter]
    curve: WarmUpCurve | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the trained weights."""

    def encode(self, sample: Sample | Pair | Question) -> Encoded:
        """Token ids and labels."""

    def batches(
        self, samples: Sequence[Sample | Pair | Question | Encoded], batch_tokens: int = 2048
    ) -> Iterator[Batch]:
        """Right-padded batches of similar length."""

    def losses(self, batch: Batch) -> torch.Tensor:
        """Loss of each sample, [B]."""

    def token_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, row and column of each label token, [N]."""

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Puts the checkpoint's weights into the model."""

    def add_checkpoints_from(self, folder: Path) -> list[Checkpoint]:
        """Reads the checkpoints of a finished warm-up."""

    def fingerprint(self) -> str:
        """Changes with the frozen model and the adapter's shape."""
