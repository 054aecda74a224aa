"""Weights in this process, and the thread that answers what all models of these weights are asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from optimsyn.base.errors import ModelError
from optimsyn.recipe.recipe import ModelSpec

if TYPE_CHECKING:
    from optimsyn.llm.local.batches import Batches
    from optimsyn.llm.local.rows import Row

_WORKERS: WeakValueDictionary[str, Worker] = WeakValueDictionary()
_LOCK = threading.Lock()


@dataclass(eq=False)
class _Asked:
    row: Row
    reply: Future[list[int]]


class Worker:
    """Weights with their batches. Generator and rubric model with the same weights share it, and so their batches.

    Attributes:
        model: The model, an adapter merged into its weights.
        tokenizer: Its tokenizer.
        batches: Its batches.
    """

    def __init__(
        self, spec: ModelSpec, adapter: Path | None, most_rows: int, shrunk: Callable[[int], None] | None
    ) -> None:
        """Loads the weights.

        Raises:
            ModelError: As for `load_causal_lm`.
        """
        from optimsyn.llm.local.batches import Batches
        from optimsyn.llm.local.loading import load_causal_lm

        model, self.tokenizer = load_causal_lm(spec, adapter=adapter)
        # One set of weights instead of an adapter's extra products in every layer.
        self.model: Any = model if adapter is None else model.merge_and_unload()
        self.name = spec.name
        self.batches: Batches = Batches(self.model, self.tokenizer, most_rows=most_rows, shrunk=shrunk)
        self._new: list[_Asked] = []
        self._lock = threading.Lock()
        self._running = False

    def ask(self, row: Row) -> Future[list[int]]:
        """The tokens of a row's reply, once they are there. Cancelling it takes the row out of its batch."""
        asked = _Asked(row, Future())
        with self._lock:
            self._new.append(asked)
            if not self._running:
                self._running = True
                # A daemon, so that a process that ends does not first answer everything that waits.
                threading.Thread(target=self._work, name="optimsyn-local-model", daemon=True).start()
        return asked.reply

    def _work(self) -> None:
        """Generates until nothing is left; whatever arrives meanwhile enters the running batch."""
        import torch

        open_: set[_Asked] = set()
        while True:
            with self._lock:
                new, self._new = self._new, []
                if not new and not open_:
                    self._running = False
                    return
            open_.update(new)
            try:
                for asked in new:
                    self.batches.add(asked, asked.row)
                if given_up := {asked for asked in open_ if asked.reply.cancelled()}:
                    self.batches.drop(set(given_up))
                    open_ -= given_up
                replies = self.batches.advance()
            except Exception as error:  # noqa: BLE001 - raised in every caller
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    error = ModelError(
                        f"model {self.name}: too little GPU memory for a batch of one reply; lower the model's "
                        "max_tokens, use shorter passages, or choose a smaller one"
                    )
                self.batches.clear()
                for asked in open_:
                    _settle(asked.reply, error)
                open_.clear()
                continue
            for key, reply in replies:
                assert isinstance(key, _Asked)
                open_.discard(key)
                _settle(key.reply, reply)


def _settle(future: Future[list[int]], result: list[int] | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def shared_worker(
    key: str, spec: ModelSpec, adapter: Path | None, most_rows: int, shrunk: Callable[[int], None] | None
) -> Worker:
    """The worker of these weights in this process; it goes with the last model that holds it.

    Args:
        key: Weights, adapter, dtype and device.
        spec: The model, if it has to be loaded.
        adapter: Folder of its adapter.
        most_rows: The most rows in a batch; of all models that share it the largest counts.
        shrunk: Called with the new `most_rows` when memory ran out.

    Raises:
        ModelError: As for `load_causal_lm`.
    """
    with _LOCK:
        worker = _WORKERS.get(key)
        if worker is None:
            worker = _WORKERS[key] = Worker(spec, adapter, most_rows, shrunk)
        else:
            worker.batches.most_rows = max(worker.batches.most_rows, most_rows)
        return worker
