"""A language model that runs in this process with transformers, and answers concurrent calls in batches."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.llm.hosted.service_memory import ServiceMemory
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.local.loading import LARGE_BATCH, at_once
from optimsyn.llm.local.turns import SHARED_DEVICES, turn
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.recipe.model_names import hub_id
from optimsyn.recipe.recipe import ModelSpec

if TYPE_CHECKING:
    from optimsyn.llm.local.generation import Generated, Row

_log = logging.getLogger(__name__)

# A batch begins when it is full, or when no further call has come for this time; on a GPU a batch takes seconds.
_GATHER_S = 0.01
_GPU_GATHER_S = 0.2
# On a CPU eight rows take little longer than one, because reading the weights dominates.
_SMALLEST_FULL_BATCH = 8
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 16


@dataclass
class _Waiting:
    row: Row
    future: asyncio.Future[Reply]


class LocalModel(LanguageModel):
    """A hub model, a local folder, or the embedded weights with an adapter, run by transformers.

    Batches are padded on the left. Each call samples with its own seed, so its batch changes its reply only by
    rounding. Schemas are not enforced. When a GPU's memory runs out, batches are halved and generated again.
    """

    def __init__(
        self,
        spec: ModelSpec,
        cache: ReplyCache | None = None,
        budget: Budget | None = None,
        *,
        adapter: Path | None = None,
    ) -> None:
        """Creates the model; the first call loads it.

        Raises:
            ModelError: The folder of the model or of the adapter does not exist.
        """
        super().__init__(spec, cache, budget, identity=_identity(spec, adapter))
        self._adapter = adapter
        self._tokenizer: Any = None
        self._model: Any = None
        self._queue: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._memory = ServiceMemory() if cache is None else ServiceMemory.beside(cache.path)
        self._most_rows: int | None = None
        # One thread, because two batches at once would only share the same cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="optimsyn-local-model")
        # Loads the model, and turns the next prompts into tokens while a batch is generated.
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="optimsyn-local-texts")

    @property
    def chat(self) -> bool:
        """Whether the tokenizer has a chat template (loads the tokenizer)."""
        return self._loaded_tokenizer().chat_template is not None

    @property
    def writer(self) -> bool:
        """Whether it is the embedded model with an adapter, which then is the writer's or a policy trained from it."""
        return self.spec.provider == "embedded" and self._adapter is not None

    @property
    def concurrency(self) -> int:
        """The recipe's `concurrency`, but at least eight: on a CPU eight rows cost little more than one."""
        return max(at_once(self.spec), _SMALLEST_FULL_BATCH)

    @property
    def most_rows(self) -> int:
        """Rows of a full batch: at most `LARGE_BATCH`, and what fitted the GPU's memory before in this run."""
        if self._most_rows is None:
            most = min(self.concurrency, LARGE_BATCH)
            self._most_rows = min(most, self._memory.of(self.name).rows or most)
        return self._most_rows

    async def _request(self, call: Call) -> Reply:
        loop = asyncio.get_running_loop()
        row = await loop.run_in_executor(self._texts, self._row, call)
        waiting = _Waiting(row, loop.create_future())
        self._queue.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())
        return await waiting.future

    @property
    def _gather_s(self) -> float:
        on_gpu = self._model is not None and self._model.device.type not in SHARED_DEVICES
        return _GPU_GATHER_S if on_gpu else _GATHER_S

    async def _work(self) -> None:
        while self._queue:
            seen = 0
            while seen < len(self._queue) < self.most_rows:
                seen = len(self._queue)
                await asyncio.sleep(self._gather_s)
            # Without the calls that were given up.
            queue = [waiting for waiting in self._queue if not waiting.future.done()]
            batch, self._queue = queue[: self.most_rows], queue[self.most_rows :]
            if not batch:
                continue
            try:
                replies = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, batch)
            except Exception as error:  # noqa: BLE001 - raised in every caller of the batch
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            for waiting, reply in zip(batch, replies, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(reply)

    def _row(self, call: Call) -> Row:
        from optimsyn.llm.local.generation import Row, prompt_ids

        self._load()
        ids = prompt_ids(self._tokenizer, call.messages, self.spec.template_arguments)
        most = call.max_tokens or self.spec.max_tokens
        limit = self._context()
        if limit is not None and len(ids) + most > limit:
            raise ModelError(
                f"model {self.name}: a prompt of {len(ids)} tokens and a reply of {most} do not fit its context of "
                f"{limit} tokens; use shorter passages or a smaller max_tokens"
            )
        temperature = self.spec.temperature if call.temperature is None else call.temperature
        assert temperature is not None  # the recipe refuses null for a local model
        return Row(
            ids=ids,
            temperature=temperature,
            max_tokens=most,
            seed=random.getrandbits(63) if call.seed is None else call.seed,
            stop=call.stop,
        )

    def _context(self) -> int | None:
        """Context length in tokens; None: the model declares none."""
        limit: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    def _longest_reply(self, reply: Reply) -> int | None:
        limit = None if self._model is None else self._context()
        return None if limit is None else limit - reply.input_tokens

    def _answer(self, batch: Sequence[_Waiting]) -> list[Reply]:
        replies: list[Reply] = []
        while len(replies) < len(batch):
            replies += self._replies(batch[len(replies) :][: self.most_rows])
        return replies

    def _replies(self, batch: Sequence[_Waiting]) -> list[Reply]:
        """Replies to as many of these calls, from the first on, as fit the memory; none if it ran out."""
        import torch

        from optimsyn.llm.local.generation import fitting, generate

        started = time.monotonic()
        rows = [waiting.row for waiting in batch]
        generated: list[Generated] | None = None
        with turn(self._model.device):
            try:
                rows = list(fitting(self._model, rows))
                given_up = [waiting.future.cancelled for waiting in batch[: len(rows)]]
                generated = generate(self._model, self._tokenizer, rows, given_up)
            except torch.cuda.OutOfMemoryError:
                pass  # handled below, because the error's traceback holds the tensors of the batch
            if generated is None:
                self._shrink(len(rows))
                return []
        seconds = time.monotonic() - started
        return [
            Reply(
                text=result.text,
                input_tokens=len(row.ids),
                output_tokens=result.tokens,
                model=self.name,
                finish_reason=result.finish_reason,
                seconds=seconds,
            )
            for row, result in zip(rows, generated, strict=True)
        ]

    def _shrink(self, rows: int) -> None:
        """Halves the batch after the GPU's memory ran out with so many rows.

        Raises:
            ModelError: There was one row.
        """
        import torch

        torch.cuda.empty_cache()
        if rows == 1:
            raise ModelError(
                f"model {self.name}: too little GPU memory for a batch of one reply; lower the model's max_tokens, "
                "use shorter passages, or choose a smaller one"
            )
        self._most_rows = most = rows // 2
        _log.warning("model %s: too little GPU memory for %d prompts at once; going on with %d", self.name, rows, most)
        self._memory.change(self.name, lambda known: replace(known, rows=min(most, known.rows or most)))

    def _loaded_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from optimsyn.llm.local.loading import load_tokenizer

            self._tokenizer = load_tokenizer(self.spec)
        return self._tokenizer

    def _load(self) -> None:
        if self._model is None:
            from optimsyn.llm.local.loading import load_causal_lm
            from optimsyn.llm.local.merging import merge_for_good

            model, self._tokenizer = load_causal_lm(self.spec, adapter=self._adapter)
            self._model = model if self._adapter is None else merge_for_good(model)

    async def aclose(self) -> None:
        """Frees the model's memory after the running batch; a later call loads it again."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._unload)

    def _unload(self) -> None:
        self._model = None


def _identity(spec: ModelSpec, adapter: Path | None) -> str:
    """Name and revision, or a fingerprint of the local folder, with the adapter's fingerprint."""
    if spec.name == "embedded":
        from optimsyn.llm.embedded.server import gguf_sha256

        base = f"embedded-weights:{gguf_sha256()}"
    elif spec.name.startswith(("~", ".", "/")) or Path(spec.name).is_dir():
        base = f"folder:{folder_fingerprint(Path(spec.name).expanduser())}"
    else:
        base = f"hub:{hub_id(spec.name)}@{spec.revision or 'main'}"
    # The same weights in another dtype answer differently.
    base += f"/{spec.dtype}"
    if spec.quantization is not None:
        base += f"/{spec.quantization}"
    if spec.chat_template_kwargs is not None:
        base += f"/{json.dumps(spec.chat_template_kwargs, sort_keys=True)}"
    return base if adapter is None else f"{base}+{folder_fingerprint(adapter)}"


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 of a model folder, in hex: of all small files, and of size and sixteen samples of large ones.

    Reading every byte takes longer than loading the model. Training changes weights everywhere, so samples show it.

    Raises:
        ModelError: There is no such folder.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such model folder")
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".json", ".safetensors", ".bin", ".model", ".jinja"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
