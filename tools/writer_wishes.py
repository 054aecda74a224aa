"""What the writer is asked for in practice: rubrics that were written for a passage, and rubrics that suit any.

A folder has files of a passage a line. Its rubrics stand in `wanted`; a passage with `examples` in their place has
pairs that the writer has learned already, and gets rubrics of other forms only.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from writer_forms import FORMS
from writer_pairs import Wish, passage_of
from writer_rubrics import PRACTICE, rubric_for

from optimsyn.data.records import Rubric

# One passage of so many is kept out of the practice, to choose by.
KEPT_OUT_OF = 10
# About Hangul, as a passage of `benchmarks/writer_held_out` is.
NEVER = ("encyclopaedia-01",)
# Rubrics of a passage that suit any.
GENERAL = 2
# What a passage must have for a form.
NEEDS = {"figure": re.compile(r"\d"), "date": re.compile(r"\b(1\d\d\d|20\d\d)\b")}


def passages(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The passages of folders, in the order of files and lines.

    Raises:
        SystemExit: A folder has none.
    """
    for folder in folders:
        if not any(folder.glob("*.jsonl")):
            raise SystemExit(f"--prompts {folder}: no *.jsonl in it; name a folder such as benchmarks/writer_prompts")
    files = [file for folder in folders for file in sorted(folder.glob("*.jsonl"))]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def wishes_of(row: dict[str, Any], count: int, seed: int) -> list[Wish]:
    """So many rubrics by chance, of those that were written for a passage and two of other forms that suit any."""
    draw = random.Random(f"{seed} {row['id']}")
    passage = passage_of(row["id"], row["passage"], row["title"])
    wanted = [Wish(passage, each["form"], Rubric(**each["rubric"])) for each in row.get("wanted", ())]
    known = {each["form"] for each in row.get("examples", ())} | {wish.form for wish in wanted}
    others = [
        form
        for form in FORMS
        if form not in known and (form not in NEEDS or NEEDS[form].search(row["passage"]) is not None)
    ]
    general = draw.sample(others, min(GENERAL, len(others)))
    wishes = wanted + [Wish(passage, form, rubric_for(form, PRACTICE, draw)) for form in general]
    return draw.sample(wishes, min(count, len(wishes)))


def is_kept_out(row: dict[str, Any]) -> bool:
    """Whether a passage is of the tenth that the writer does not practise on (its name decides), or one of `NEVER`."""
    return row["id"] in NEVER or int(hashlib.sha256(str(row["id"]).encode()).hexdigest(), 16) % KEPT_OUT_OF == 0
