"""A language model that runs in this process with transformers, and answers concurrent calls in batches."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.llm.hosted.service_memory import ServiceMemory
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.local.loading import on_gpu, writer_adapter
from optimsyn.llm.local.worker import Worker, shared_worker
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.recipe.model_names import hub_id
from optimsyn.recipe.recipe import ModelSpec

if TYPE_CHECKING:
    from optimsyn.llm.local.rows import Row

# On a CPU eight rows take little longer than one, because reading the weights dominates.
_SMALLEST_FULL_BATCH = 8
# On a GPU a batch of a small model gains up to here.
_LARGE_BATCH = 512
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 16


class LocalModel(LanguageModel):
    """A hub model, a local folder, or the embedded weights with an adapter, run by transformers.

    A call enters the batch that is being generated, and leaves it when its reply ends. Each samples with its own seed,
    so its batch changes its reply only by rounding. Schemas are not enforced. Models of the same weights share them
    and their batches.

    Attributes:
        worker: What answers its calls; None: not loaded.
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

        Args:
            spec: The model as the recipe describes it.
            cache: The reply cache; None: replies are not kept.
            budget: The run's cap.
            adapter: Folder of a peft adapter; None: none, or the writer's of the embedded model.

        Raises:
            ModelError: The folder of the model or of the adapter does not exist.
        """
        if adapter is None and spec.name == "embedded":
            adapter = writer_adapter()
        super().__init__(spec, cache, budget, identity=_identity(spec, adapter))
        self._adapter = adapter
        self._tokenizer: Any = None
        self.worker: Worker | None = None
        self._memory = ServiceMemory() if cache is None else ServiceMemory.beside(cache.path)
        # Prompts and replies become tokens and text beside the thread that generates.
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="optimsyn-local-texts")

    @property
    def chat(self) -> bool:
        """Whether the tokenizer has a chat template (loads the tokenizer)."""
        return self.spec.name != "embedded" and self._loaded_tokenizer().chat_template is not None

    @property
    def concurrency(self) -> int:
        """Rows of a full batch: the recipe's `concurrency`, but at least eight, which cost little more than one.

        On a GPU it is 512 unless the recipe says otherwise; what does not fit its memory waits for a place.
        """
        if self.spec.concurrency == ModelSpec.model_fields["concurrency"].default and on_gpu(self.spec):
            return _LARGE_BATCH
        return max(self.spec.concurrency, _SMALLEST_FULL_BATCH)

    async def _request(self, call: Call) -> Reply:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        worker, row = await loop.run_in_executor(self._texts, self._row, call)
        tokens = await asyncio.wrap_future(worker.ask(row))
        return await loop.run_in_executor(self._texts, self._reply, worker, row, tokens, started)

    def _row(self, call: Call) -> tuple[Worker, Row]:
        from optimsyn.llm.local.generation import Row, prompt_ids

        worker = self._loaded()
        ids = prompt_ids(worker.tokenizer, call.messages, self.spec.template_arguments)
        most = call.max_tokens or self.spec.max_tokens
        limit = self._context()
        if limit is not None and len(ids) + most > limit:
            raise ModelError(
                f"model {self.name}: a prompt of {len(ids)} tokens and a reply of {most} do not fit its context of "
                f"{limit} tokens; use shorter passages or a smaller max_tokens"
            )
        temperature = self.spec.temperature if call.temperature is None else call.temperature
        assert temperature is not None  # the recipe refuses null for a local model
        seed = random.getrandbits(63) if call.seed is None else call.seed
        return worker, Row(ids=ids, temperature=temperature, max_tokens=most, seed=seed, stop=call.stop)

    def _reply(self, worker: Worker, row: Row, tokens: list[int], started: float) -> Reply:
        from optimsyn.llm.local.rows import finished

        result = finished(worker.tokenizer, row, tokens, worker.batches.ends)
        return Reply(
            text=result.text,
            input_tokens=len(row.ids),
            output_tokens=result.tokens,
            model=self.name,
            finish_reason=result.finish_reason,
            seconds=time.monotonic() - started,
        )

    def _context(self) -> int | None:
        """Context length in tokens; None: the model declares none, or is not loaded."""
        if self.worker is None:
            return None
        limit: int | None = getattr(self.worker.model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    def _longest_reply(self, reply: Reply) -> int | None:
        limit = self._context()
        return None if limit is None else limit - reply.input_tokens

    def _loaded_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from optimsyn.llm.local.loading import load_tokenizer

            self._tokenizer = load_tokenizer(self.spec)
        return self._tokenizer

    def _loaded(self) -> Worker:
        if self.worker is None:
            # Another run of these weights may have learned how many rows fit.
            rows = min(self.concurrency, self._memory.of(self.name).rows or self.concurrency)
            key = f"{self.identity}@{self.spec.device}"
            self.worker = shared_worker(key, self.spec, self._adapter, rows, self._shrunk)
        return self.worker

    def _shrunk(self, rows: int) -> None:
        self._memory.change(self.name, lambda known: replace(known, rows=rows))

    async def aclose(self) -> None:
        """Frees the model's memory, unless another model shares it; a later call loads it again."""
        self.worker = None


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
