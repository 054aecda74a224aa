"""A generator whose replies somebody else writes: prompts go into a folder, and replies are taken from it.

    models:
      generator: {plugin: "by_post:ByPost", settings: {folder: post}, concurrency: 512, timeout_s: 86400}

Each request is written to `<folder>/asked/<id>.json` (`id`, `prompt`, `seed`), and waits until a file in
`<folder>/replies` (`*.jsonl`) has a row with its `id` and a `reply`. Replies are found again by prompt and seed, so
that all runs with the same folder share them.
"""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.files import write_json

if TYPE_CHECKING:
    from optimsyn.llm.language_model import Call

_LOOK_S = 1.0


class ByPost:
    """Waits for replies in a folder.

    Args:
        folder: Its path.
    """

    def __init__(self, folder: str) -> None:
        self._asked, self._written = Path(folder) / "asked", Path(folder) / "replies"
        for each in (self._asked, self._written):
            each.mkdir(parents=True, exist_ok=True)
        self._replies: dict[str, str] = {}
        self._read: dict[Path, int] = {}
        self._look()

    async def complete(self, call: Call) -> str:
        """The reply, as soon as there is one."""
        name = sha256(json.dumps([call.prompt, call.seed]).encode()).hexdigest()[:16]
        if name not in self._replies:
            write_json(self._asked / f"{name}.json", {"id": name, "prompt": call.prompt, "seed": call.seed})
        while name not in self._replies:
            await asyncio.sleep(_LOOK_S)
            self._look()
        return self._replies[name]

    def _look(self) -> None:
        """Takes up the files that are new or have grown."""
        for file in sorted(self._written.glob("*.jsonl")):
            size = file.stat().st_size
            if self._read.get(file) == size:
                continue
            self._read[file] = size
            # A line that is still being written is read when the file has grown.
            whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
            for line in whole.splitlines():
                row = json.loads(line)
                self._replies[row["id"]] = row["reply"]
