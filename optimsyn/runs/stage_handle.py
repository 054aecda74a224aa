"""The handle of a running stage: it notes facts and reports progress."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import StageError
from optimsyn.base.files import write_json, write_jsonl
from optimsyn.base.meter import Meter
from optimsyn.base.suggestions import did_you_mean
from optimsyn.base.terminal.labels import UNREAD
from optimsyn.base.terminal.live_line import LiveLine, in_notebook
from optimsyn.runs.datasets.pairs import FIRST, LAST, between, pairs_file
from optimsyn.runs.stage_functions import own_stage

if TYPE_CHECKING:
    from optimsyn.data.records import Pair
    from optimsyn.runs.protocol import RunLike

PROGRESS_FILE = ".progress.json"
TELL_SECONDS = 0.5
# Counting the outcomes reads a table that grows with the run.
_COUNT_SECONDS = 5.0


class StageHandle:
    """The handle of a running stage.

    Attributes:
        name: Name of the stage.
        finished: The stage has already finished; there is nothing to do.
        options: A custom stage's `options` in the recipe; empty for built-in stages.
        notes: Facts for the manifest.
        handed_on: Number of pairs handed on, by variant.
        meter: Measures how busy the models are, from the creation of the handle on.
    """

    def __init__(self, run: RunLike, name: str, *, finished: bool) -> None:
        self.name = name
        self.finished = finished
        own = own_stage(run.recipe, name)
        self.options: dict[str, Any] = {} if own is None else dict(own.options)
        self.notes: dict[str, Any] = {}
        self.handed_on: dict[str, int] = {}
        self.meter = Meter()
        self._run = run
        self._lock = threading.Lock()
        self._part = ""
        self._begun = 0.0
        self._first = 0
        self._reported: tuple[float, int, int] = (float("-inf"), -1, -1)
        self._unread: dict[str, int] = {}
        self._counted = float("-inf")

    def note(self, **facts: Any) -> None:
        """Puts facts (JSON values) into the stage's record in the manifest."""
        self.notes.update(facts)

    def hand_on(self, variant: str, pairs: Iterable[Pair]) -> None:
        """Replaces the pairs of a variant for the later stages, once this stage has finished.

        They are written to `<stage>/<variant>.selected.jsonl`; the files of `synthesize` stay as they are. When the
        variant is the dataset, that is rewritten. A pair with a changed text is neither checked nor scored again.

        Args:
            variant: Variant of the pairs; variants that are not handed on keep their pairs.
            pairs: All pairs, in order.

        Raises:
            StageError: The stage is not between `synthesize` and `fine_tune`, there is no such variant, no pair
                is left, or two pairs share an id.
        """
        if self.name not in between(self._run.manifest):
            raise StageError(f"stage {self.name}: only a stage between {FIRST} and {LAST} can hand on pairs")
        if variant not in self._run.recipe.variants:
            hint = did_you_mean(variant, self._run.recipe.variants, f"it has {', '.join(self._run.recipe.variants)}")
            raise StageError(f"stage {self.name}: the run has no variant {variant!r}; {hint}")
        handed = list(pairs)
        if not handed:
            raise StageError(f"stage {self.name}: no pair of the variant {variant} is left to fine-tune on")
        if len({pair.id for pair in handed}) < len(handed):
            raise StageError(f"stage {self.name}: two pairs of the variant {variant} share an id")
        write_jsonl(pairs_file(self._run.folder, self.name, variant), handed)
        self.handed_on[variant] = len(handed)

    def progress(self, done: int, total: int, what: str = "steps", *, last: bool = True) -> None:
        """Reports progress; cheap enough to call for every item, from any thread.

        Args:
            done: Items done.
            total: Items in all.
            what: Name of the items, in the plural. Another name begins another part of the stage.
            last: This is the last part that takes long, so its end is the end of the stage.
        """
        with self._lock:
            moment = time.monotonic()
            if what != self._part:
                self._part, self._begun, self._first = what, moment, done
                self._reported = (float("-inf"), -1, -1)
            when, *before = self._reported
            if before == [done, total] or (done < total and moment - when < TELL_SECONDS):
                return
            self._reported = (moment, done, total)
            # A full disk is reported by the writes that matter.
            with suppress(OSError):
                write_json(
                    self._run.folder / PROGRESS_FILE,
                    {
                        "stage": self.name,
                        "done": done,
                        "total": total,
                        "what": what,
                        "first": self._first,
                        "seconds": moment - self._begun,
                        "last": last,
                        "at": time.time(),
                        "unread": self._unread_replies(moment),
                    },
                )

    def _unread_replies(self, moment: float) -> dict[str, int]:
        """Requests whose reply could not be read, by outcome."""
        if moment - self._counted >= _COUNT_SECONDS:
            self._counted = moment
            outcomes: Counter[str] = Counter()
            for counts in self._run.outcomes().values():
                outcomes.update(counts)
            self._unread = {name: outcomes[name] for name in UNREAD if outcomes[name]}
        return self._unread

    def count(self, total: int, what: str, *, last: bool = True) -> Count:
        """A counter for one part, for tasks that end in any order."""
        return Count(self, total, what, last=last)


class Count:
    """Counts items and reports the stage's progress, from the first `add` on, which may be `add(0)`.

    Args:
        stage: The stage.
        total: Items expected.
        what: Name of the items, in the plural.
        last: As in `StageHandle.progress`.
    """

    def __init__(self, stage: StageHandle, total: int, what: str, *, last: bool = True) -> None:
        self._stage = stage
        self._what = what
        self._last = last
        self._lock = threading.Lock()
        self.done = 0
        self.total = total

    def add(self, items: int = 1) -> None:
        """Counts further items; raises the total if there are more than expected."""
        with self._lock:
            self.done += items
            self.total = max(self.total, self.done)
            done, total = self.done, self.total
        self._stage.progress(done, total, self._what, last=self._last)


@contextmanager
def shown_in_notebook(run: RunLike, stage: str) -> Iterator[None]:
    """Shows a stage's progress as one line in a notebook; does nothing outside of one."""
    if not in_notebook():
        yield
        return
    from optimsyn.runs.durations import clock, described, earlier_seconds, share_done, since_begun

    earlier = earlier_seconds(run)

    def status() -> str:
        return f"{stage}: {described(run, stage, since_begun(run.manifest.stage(stage)), earlier)}"

    def taken() -> str:
        return clock(run.manifest.stage(stage).seconds or 0.0)

    with LiveLine(status, share=lambda: share_done(run, stage)) as line:
        try:
            yield
        except BaseException:
            line.finish(f"{stage}: stopped after {taken()}")
            raise
        line.finish(f"{stage}: finished after {taken()}")
