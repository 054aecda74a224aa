"""What a warm-up asks of the target that it trains, so that it need not know its class."""

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
    """A model with trained parameters; `optimsyn.target.target.Target` is one, and says what each of these does."""

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
        """Right-padded batches of like length."""

    def losses(self, batch: Batch) -> torch.Tensor:
        """Loss of each sample, [B]."""

    def token_losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, row and column of each label token, [N]."""

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Puts the checkpoint's weights into the model."""

    def add_checkpoints_from(self, folder: Path) -> list[Checkpoint]:
        """Takes over the checkpoints of a finished warm-up."""

    def fingerprint(self) -> str:
        """Changes with the frozen model and the adapter's shape."""
