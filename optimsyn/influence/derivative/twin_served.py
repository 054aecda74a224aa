"""Twin-adapter scoring by a server: needs the target's tokenizer but not its weights."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from optimsyn.base.errors import ModelError
from optimsyn.base.event_loops import run_sync
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import MOST_ERROR, Choice, Method, percent, relative_error
from optimsyn.influence.derivative.scorer import TokenSums
from optimsyn.influence.derivative.twin_export import TwinRecord, probe_ids
from optimsyn.influence.fingerprint import encoding_digest
from optimsyn.influence.scores import Scores
from optimsyn.llm.hosted.prompt_logprobs import PromptLogprobs
from optimsyn.target.encoding import IGNORE, Encoded, as_sample, counted, encode


class ServedTwinScorer:
    """Scores pairs through a vLLM server that holds exported twins; a drop-in for `TwinScorer`.

    Its steps were measured in the process that exported them. A server that computes in 16 bits may round differences
    of losses away, so before the first score it scores a few validation questions whose scores by gradients in float32
    are in the export; a server with too large an error is refused.

    Args:
        folder: The folder of `export_twins`.
        tokenizer: The target's.
        api_base: Address of the server's API, which usually ends in /v1.
        api_key_env: Environment variable with the key; None for a server without a key.
        server_folder: The path of `folder` on the server, where it differs.
        concurrency: Concurrent requests.
        retries: Retries of a failed request.
        timeout_s: Timeout of one request.
        most_error: Refuse scores whose measured error is at least this share of their size.

    Attributes:
        method: twin.
        numerical_error: The error on this server, as a share of the scores' size; measured on first access.
        choice: None.
        subtasks: Names of the columns of `Scores.by_subtask`.
        fingerprint: Changes with the exporting scorer and the tokenizer; it differs from that scorer's fingerprint,
            because a server computes in its own precision.

    Raises:
        ModelError: The folder holds no twins, or the tokenizer differs.
        ServiceError: `api_key_env` names a variable that is not set.

    Example:
        >>> scorer = ServedTwinScorer(folder, tokenizer, "http://localhost:8000/v1")  # doctest: +SKIP
        >>> scorer.score(pairs).total                                                 # doctest: +SKIP
    """

    method: ClassVar[Method] = "twin"

    def __init__(  # noqa: PLR0913 - keyword options of a public class
        self,
        folder: Path,
        tokenizer: Any,
        api_base: str,
        *,
        api_key_env: str | None = None,
        server_folder: str | None = None,
        concurrency: int = 8,
        retries: int = 3,
        timeout_s: float = 120.0,
        most_error: float = MOST_ERROR,
    ) -> None:
        self.record = TwinRecord.load(folder)
        if tuple(probe_ids(tokenizer)) != self.record.probe_ids:
            raise ModelError(
                f"{folder}: its twins belong to {self.record.model}, whose tokenizer differs from the given one; load "
                "the tokenizer of the model that the server serves"
            )
        self.tokenizer = tokenizer
        self._folder = server_folder if server_folder is not None else str(folder.resolve())
        self._client = PromptLogprobs(
            api_base, api_key_env=api_key_env, concurrency=concurrency, retries=retries, timeout_s=timeout_s
        )
        self._loaded = False
        self._most_error = most_error
        self.choice: Choice | None = None
        self.subtasks: tuple[str, ...] = self.record.subtasks
        self.fingerprint = f"served-{self.record.fingerprint}-{encoding_digest(tokenizer)}"

    @cached_property
    def numerical_error(self) -> float:
        """See the class."""
        probes = [probe.encoded() for probe in self.record.probes]
        sums = TokenSums(probes, self.subtasks)
        run_sync(self._add(probes, sums))
        wanted = torch.tensor([probe.scores for probe in self.record.probes], dtype=torch.float64)
        return relative_error(sums.by_subtask(), wanted)

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order; `gradient_norm` is None.

        Args:
            pairs: What to score.
            token_shares: Also give each label token's share; a sample's shares sum to its total.

        Raises:
            ModelError: A pair has an empty answer, is too long without its context, or its loss is not finite; or the
                server's error is too large.
            ServiceError: The server refused or failed for good.
        """
        whole = [encode(self.tokenizer, as_sample(pair), self.record.max_length) for pair in pairs]
        encoded = [counted(item, self.record.tokens, "pair") for item in whole]
        sums = TokenSums(encoded, self.subtasks)
        if encoded:
            self._refuse_noise()
            run_sync(self._add(encoded, sums))
        return sums.scores(self.record.across_subtasks, token_shares=token_shares)

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing: 0, since a linear estimator has no momentum."""
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}

    def _refuse_noise(self) -> None:
        if self.numerical_error >= self._most_error:
            raise ModelError(
                f"the server's scores are off by {percent(self.numerical_error)} of their size on the target's own "
                f"validation questions, where less than {percent(self._most_error)} is allowed: it rounds small "
                "differences of losses away; serve the model with --dtype float32, export the twins stacked "
                "(export_twins(..., stacked=True)) or with longer steps, or use influence.method: auto"
            )

    async def _add(self, encoded: list[Encoded], sums: TokenSums) -> None:
        async with self._client as client:
            if not self._loaded:
                names = dict.fromkeys(name for group in self.record.adapters for name in group)
                await _all([client.load_adapter(name, f"{self._folder}/{name}") for name in names])
                self._loaded = True
            for plan, names_here in zip(self.record.plans, self.record.adapters, strict=True):
                asked = [client.logprobs(name, item.input_ids) for item in encoded for name in names_here]
                replies = await _all(asked)
                for i, item in enumerate(encoded):
                    rows = replies[i * len(names_here) : (i + 1) * len(names_here)]
                    losses = torch.stack([_label_losses(item, row) for row in rows])
                    rows_here = torch.zeros(losses.shape[1], dtype=torch.int64)
                    sums.add(plan.weight, plan.reference_norm, [i], *plan.read(losses), rows_here)


def _label_losses(item: Encoded, logprobs: list[float]) -> torch.Tensor:
    """[label tokens], float64; `logprobs` starts at the second token."""
    values = [-logprobs[place - 1] for place, label in enumerate(item.labels) if place and label != IGNORE]
    return torch.tensor(values, dtype=torch.float64)


async def _all(coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Results in order; the first failure cancels the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        # Retrieve the outcomes of cancelled tasks, which nobody else awaits.
        await asyncio.gather(*tasks, return_exceptions=True)
