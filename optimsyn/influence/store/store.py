"""A store of compressed per-sample directions: process a pool once, score it for many question sets.

    store = GradientStore.open_or_create(folder / "pool", target)
    store.add(pairs)                                              # the model's work, once
    questions = QuestionStore.open_or_create(folder / "law", target)
    questions.add(law_questions)                                  # a few questions: seconds

    scores = GradientStore.open(folder / "pool").score(QuestionStore.open(folder / "law"))

The last line needs no model. A sample's row holds for each checkpoint the projected Γ(g) and the exact ‖Γ‖, ‖g‖ and
loss; a question's row holds g/‖g‖ under the same projection (`optimsyn.influence.gradients.projection`), and ‖Γ(g)‖ for
the reference norm of dot-product scores. Γ is applied before the projection, since most estimators are not linear. Only
⟨V, Γ⟩ is an approximation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.directions import direction_scale, question_votes
from optimsyn.influence.estimators import normalised
from optimsyn.influence.gradients.projection import Projection
from optimsyn.influence.options import ScoringOptions, checkpoint_weights
from optimsyn.influence.scores import Scores
from optimsyn.influence.store.shards import MANIFEST, Rows, differences
from optimsyn.influence.store.writer import Writer, describe
from optimsyn.recipe.sections.influence import PART_OF_AN_END
from optimsyn.recipe.sections.models import CountedTokens, QuestionGradients
from optimsyn.target.encoding import as_sample
from optimsyn.target.target import Target

_WINDOW = 1024  # Samples that are sorted by length together.
_CHUNK_BYTES = 64 * 2**20
# Fields in which a store and its target, or a pool and its questions, must agree.
_IDENTITY = "target checkpoints estimator estimator_source tokens projection parameters encoding".split()


class _Store:
    """The base of pools and question sets."""

    kind: ClassVar[str]
    _dtype: ClassVar[str]

    def __init__(self, rows: Rows, target: Target | None) -> None:
        if rows.manifest["kind"] != self.kind:
            raise ModelError(
                f"{rows.folder}: is a store of {rows.manifest['kind']}, not of {self.kind}; name another folder"
            )
        self._rows = rows
        self._target = target
        self._writer: Writer | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Opens a store for reading; needs no model.

        Raises:
            ModelError: The folder holds no store of this kind, or a damaged one.
        """
        return cls(Rows(Path(folder)), None)

    @classmethod
    def open_or_create(
        cls,
        folder: str | Path,
        target: Target,
        *,
        estimator: str = "adam_linear",
        tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
        projection: Projection | None = Projection(),  # noqa: B008 - frozen
        dtype: Literal["float16", "float32"] | None = None,
    ) -> Self:
        """Opens the store in `folder`, or creates it.

        Args:
            folder: One store per folder.
            target: A warmed-up target; all of its checkpoints are stored.
            estimator: See `optimsyn.influence.estimators`; that of a question set gives the reference norm of its
                pool's dot products.
            tokens: Which tokens of pairs and questions count.
            projection: None keeps every direction whole: exact, and as large as the trained parameters.
            dtype: Of the stored values, each row scaled by a power of two; norms and losses are float64. None: float16
                for a pool, float32 for questions.

        Raises:
            ModelError: The folder's store was made with another target, checkpoint, estimator, projection, tokeniser
                or dtype (the message names which), is damaged, or the target has not been warmed up.
            RecipeError: There is no such estimator.
            DataError: There is no such dtype.
        """
        folder = Path(folder)
        manifest = describe(target, cls.kind, estimator, tokens, projection, dtype or cls._dtype)
        if not (folder / MANIFEST).is_file():
            Rows.create(folder, manifest)
        rows = Rows(folder)
        unlike = differences(manifest, rows.manifest, ("kind", *_IDENTITY, "dtype"))
        if unlike:
            raise ModelError(
                f"{folder}: this store was made with another {', another '.join(unlike)}; use the original "
                "settings, name another folder, or delete this one and fill it again"
            )
        return cls(rows, target)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all rows, in the order of rows (not the order of adding: samples are batched by length)."""
        return tuple(self._rows.ids)

    def __len__(self) -> int:
        return len(self._rows.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._rows.ids

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return self._rows.folder

    @property
    def manifest(self) -> dict[str, Any]:
        """What the rows are: target, checkpoints, estimator, projection and so on."""
        return self._rows.manifest

    def size(self) -> int:
        """Bytes on disk."""
        return self._rows.size()

    def add(self, samples: Iterable[Sample | Pair | Question], batch_tokens: int = 2048) -> int:
        """Adds new samples; every batch is durable once it is written.

        The iterable is read in windows of 1,024, so that a pool of any size takes the memory of a window, a batch and
        the index. A killed call loses only its current batch; call it again with the same samples to continue. The
        adapter is left at the last checkpoint.

        Args:
            samples: In any order; a repeated id with the same text is skipped.
            batch_tokens: Tokens per forward pass.

        Returns:
            How many rows are new.

        Raises:
            DataError: An id exists with another text (or a question with another subtask).
            ModelError: The store was opened without a target, another process is adding, or a sample has an empty
                answer, a loss or direction that is not finite or, of a question, a gradient of 0.
        """
        if self._target is None:
            raise ModelError(f"{self.folder}: was opened for reading; use open_or_create with its target to add")
        if self._writer is None:
            self._writer = Writer(self._target, self.manifest, self._rows.record, questions=self.kind == "questions")
        source = iter(samples)
        with self._rows.writing():
            before = len(self)
            while window := list(islice(source, _WINDOW)):
                fresh = self._fresh(window)
                for names, records in self._writer.records([item for item, _ in fresh.values()], batch_tokens):
                    self._rows.append(
                        names,
                        [fresh[name][1] for name in names],
                        [(fresh[name][0].subtask or "all") if self.kind == "questions" else "" for name in names],
                        records,
                    )
        return len(self) - before

    def _fresh(self, window: Sequence[Sample | Pair | Question]) -> dict[str, tuple[Sample, int]]:
        """Samples that are not in the store and the digest of their text, by id."""
        fresh: dict[str, tuple[Sample, int]] = {}
        for item in window:
            sample = as_sample(item)
            facts = [sample.prompt, sample.completion, sample.messages]
            if self.kind == "questions":
                facts.append(sample.subtask or "all")
            text = int.from_bytes(hashlib.sha256(json.dumps(facts).encode()).digest()[:8], "big")
            there = self._rows.ids.get(sample.id)
            stored = self._rows.text_of(there) if there is not None else fresh.get(sample.id, (sample, text))[1]
            if stored != text:
                raise DataError(
                    f"{self.folder}: {sample.id!r} is already there with another text; give the changed "
                    f"{self.kind[:-1]} a new id, or delete the folder and fill the store again"
                )
            if there is None:
                fresh[sample.id] = sample, text
        return fresh

    def _chunks(self, rows: np.ndarray[Any, Any]) -> Iterator[tuple[slice, np.ndarray[Any, Any]]]:
        step = max(1, _CHUNK_BYTES // self._rows.record.itemsize)
        for start in range(0, len(rows), step):
            part = slice(start, min(start + step, len(rows)))
            yield part, self._rows.read(rows[part])


class QuestionStore(_Store):
    """The normalised gradients of one question set, by which pools of the same settings are scored."""

    kind = "questions"
    _dtype = "float32"

    def directions(
        self, question_gradients: QuestionGradients = "plain"
    ) -> tuple[tuple[str, ...], torch.Tensor, torch.Tensor]:
        """Subtasks (sorted), V [C, K, width] projected, and reference norms [C]; float64.

        Args:
            question_gradients: As `InfluenceScorer`.

        Raises:
            DataError: The store is empty.
            ModelError: No answer has a probability that can be told from 0.
            RecipeError: There is no such kind of question gradients, or a part of an end has no probability.
        """
        if not len(self):
            raise DataError(f"{self.folder}: holds no question; add some first")
        rows = np.fromiter(self._rows.ids.values(), dtype=np.int64, count=len(self))
        names = tuple(sorted(set(self._rows.subtasks.values())))
        place = {name: k for k, name in enumerate(names)}
        columns = torch.tensor([place[self._rows.subtasks[row]] for row in rows.tolist()])
        checkpoints = len(self.manifest["checkpoints"])
        total = torch.zeros(len(names), checkpoints, int(self.manifest["width"]), dtype=torch.float64)
        squares = torch.zeros(checkpoints, dtype=torch.float64)
        # Rows have length 1 before the projection.
        norms, losses, counts = (
            torch.cat([torch.from_numpy(records[name].copy()) for _, records in self._chunks(rows)])
            for name in ("gradient_norm", "loss", "label_tokens")
        )
        votes = question_votes(question_gradients, norms, losses, self._lengths(counts, question_gradients))
        votes = votes * norms / direction_scale(question_gradients, votes, norms)
        for part, records in self._chunks(rows):
            values = torch.from_numpy(records["values"].astype(np.float64) * records["scale"][..., None])
            total.index_add_(0, columns[part], values * votes[part].unsqueeze(-1))
            squares += torch.from_numpy(np.square(records["direction_norm"]).sum(0))
        total /= columns.bincount(minlength=len(names)).view(-1, 1, 1)
        return names, total.transpose(0, 1), (squares / len(rows)).sqrt()

    def _lengths(self, label_tokens: torch.Tensor, kind: QuestionGradients) -> torch.Tensor:
        """What the sums over the questions' tokens are divided by in their losses, [Q] float64."""
        tokens = CountedTokens.model_validate(self.manifest["tokens"])
        if kind == "probability" and 0 < tokens.end_of_questions < 1:
            raise RecipeError(f"{self.folder}: {PART_OF_AN_END}, and store the questions again")
        power = {"mean": 1.0, "root": 0.5, "sum": 0.0}[tokens.reduction]
        return label_tokens.double() ** power


class GradientStore(_Store):
    """The compressed directions of a pool.

    Example:
        >>> store = GradientStore.open_or_create("pool", target)               # doctest: +SKIP
        >>> store.add(pairs)                                                         # doctest: +SKIP
        >>> GradientStore.open("pool").score(QuestionStore.open("law")).total  # doctest: +SKIP
    """

    kind = "samples"
    _dtype = "float16"

    def score(
        self,
        questions: QuestionStore,
        *,
        normalization: Literal["cosine", "dot"] = "dot",
        across_subtasks: Literal["mean", "max"] = "mean",
        question_gradients: QuestionGradients = "plain",
        ids: Sequence[str] | None = None,
    ) -> Scores:
        """Scores the pool by its influence on the questions, without any model.

        Reads the store once, 64 MiB at a time.

        Args:
            questions: Stored with the same target, checkpoints, estimator and projection.
            normalization: As `InfluenceScorer`. Projection errors can put a cosine slightly outside of [-1, 1].
            across_subtasks: As `InfluenceScorer`.
            question_gradients: As `InfluenceScorer`.
            ids: Score these, in this order; None scores all, in the order of `ids`.

        Raises:
            ModelError: The questions were stored with other settings; names which. Or they have no direction.
            DataError: An id is not in the store, or there is no question.
            RecipeError: An option has no such value.
        """
        # Options are checked before anything is read.
        ScoringOptions(
            normalization=normalization, across_subtasks=across_subtasks, question_gradients=question_gradients
        )
        unlike = differences(self.manifest, questions.manifest, _IDENTITY)
        if unlike:
            raise ModelError(
                f"{questions.folder}: these questions were stored with another {', another '.join(unlike)} than the "
                f"pool {self.folder}; store the questions again with the pool's settings"
            )
        names = self.ids if ids is None else tuple(ids)
        missing = [name for name in names if name not in self._rows.ids]
        if missing:
            raise DataError(f"{self.folder}: has no sample {missing[0]!r} ({len(missing)} such ids); add them first")
        rows = np.array([self._rows.ids[name] for name in names], dtype=np.int64)
        subtasks, vectors, reference = questions.directions(question_gradients)
        weights = checkpoint_weights([float(checkpoint["lr"]) for checkpoint in self.manifest["checkpoints"]])
        columns = vectors.float().transpose(1, 2)
        n = len(names)
        by_subtask = torch.zeros(n, len(subtasks), dtype=torch.float64)
        gradient_norm, loss = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        label_tokens = torch.zeros(n, dtype=torch.int64)
        for part, records in self._chunks(rows):
            label_tokens[part] = torch.from_numpy(records["label_tokens"].copy())
            for i, weight in enumerate(weights):
                values = torch.from_numpy(records["values"][:, i].astype(np.float32))
                scale = torch.from_numpy(records["scale"][:, i].copy())
                dots = (values @ columns[i]).double() * scale.unsqueeze(1)
                norms = torch.from_numpy(records["direction_norm"][:, i].copy()).unsqueeze(1)
                if normalization == "dot":
                    norms = torch.full_like(norms, float(reference[i]))
                by_subtask[part] += weight * normalised(dots, norms)
                gradient_norm[part] += weight * torch.from_numpy(records["gradient_norm"][:, i].copy())
                loss[part] += weight * torch.from_numpy(records["loss"][:, i].copy())
        return Scores.finished(
            names,
            subtasks,
            across_subtasks,
            by_subtask=by_subtask,
            gradient_norm=gradient_norm,
            loss=loss,
            label_tokens=label_tokens,
        )
