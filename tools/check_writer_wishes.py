"""Checks passages with contrasting rubrics: those held out, and those that the writer practises on.

    python tools/check_writer_wishes.py             # `benchmarks/writer_held_out` and `benchmarks/writer_prompts`
    python tools/check_writer_wishes.py --file F    # one subject

No file has the name of one of the corpus or of the other folder. Practice has pairs that were written by hand for most
of its rubrics.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from check_writer_corpus import DOMAINS, Strict, content
from check_writer_corpus import FOLDER as CORPUS
from pydantic import Field, ValidationError
from writer_forms import FORMS, Written

from optimsyn.data.records import Rubric

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
HELD_OUT, PRACTICE = BENCHMARKS / "writer_held_out", BENCHMARKS / "writer_prompts"


class ByHand(Strict):
    """A pair that was written by hand: by a language model that took care, for this project."""

    quote: str = Field(min_length=1)
    question: str = Field(min_length=10, max_length=300)
    answer: str = Field(min_length=1, max_length=500)
    options: tuple[str, ...] = ()


class Wanted(Strict):
    """A rubric, and the form of its pair."""

    guiding_text: str | None = Field(None, min_length=20, max_length=600)
    form: Literal[tuple(FORMS)]  # type: ignore[valid-type]
    rubric: Rubric
    pair: ByHand | None = None


class Wishes(Strict):
    """A passage with its contrasting rubrics."""

    id: str
    subject: str
    domain: Literal[DOMAINS]  # type: ignore[valid-type]
    title: str
    passage: str
    wanted: tuple[Wanted, ...] = Field(min_length=4, max_length=4)


def faults_of_pair(expected: Wanted, passage: str) -> Iterator[str]:
    """The faults of a pair that was written by hand."""
    pair = expected.pair
    if pair is None:
        return
    if pair.quote not in passage or "\n" in pair.quote:
        yield f"the quote {pair.quote!r} is in no line of the passage"
    if pair.options and pair.answer not in pair.options:
        yield f"the answer {pair.answer!r} is no option"
    if not FORMS[expected.form](Written(passage, pair.question, pair.answer, pair.options)):
        yield f"it does not have the form {expected.form}"


def faults_of(entry: Wishes, corpus_names: set[str]) -> Iterator[str]:
    """The faults of one passage and its rubrics."""
    if entry.subject in corpus_names:
        yield f"the corpus has the subject {entry.subject}"
    words = len(entry.passage.split())
    if not 50 <= words <= 260:
        yield f"the passage has {words} words; it must have 50 to 260"
    if len({expected.form for expected in entry.wanted}) < len(entry.wanted):
        yield "two rubrics ask for the same form"
    for place, expected in enumerate(entry.wanted):
        for name, line in expected.rubric.model_dump().items():
            if not 3 <= len(line.split()) <= 24 or "\n" in line:
                yield f"rubric {place}, {name}: {len(line.split())} words; it must have 3 to 24 on one line"
        yield from (f"pair {place}: {fault}" for fault in faults_of_pair(expected, entry.passage))
    rubrics = [content(" ".join(expected.rubric.model_dump().values())) for expected in entry.wanted]
    for index in range(len(rubrics)):
        for other in range(index):
            shared = len(rubrics[index] & rubrics[other]) / max(1, min(len(rubrics[index]), len(rubrics[other])))
            if shared > 0.7:
                yield f"rubrics {other} and {index} share {shared:.0%} of their words"


def main() -> int:
    """Prints all faults; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, action="append", help="only these files")
    args = parser.parse_args()
    corpus_names = {file.stem for file in CORPUS.glob("*.jsonl")}
    held_out, practice = (sorted(folder.glob("*.jsonl")) for folder in (HELD_OUT, PRACTICE))
    both = {file.stem for file in held_out} & {file.stem for file in practice}
    entries, faults = [], [f"{name}: held out, and practised on" for name in sorted(both)]
    for file in args.file or [*held_out, *practice]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = Wishes.model_validate(json.loads(line))
            except (json.JSONDecodeError, ValidationError) as error:
                faults.append(f"{file.name}:{number}: {str(error)[:400]}")
                continue
            entries.append(entry)
            faults += [f"{file.name}:{number}: {fault}" for fault in faults_of(entry, corpus_names)]
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    forms = Counter(expected.form for entry in entries for expected in entry.wanted)
    counts = ", ".join(f"{form} {count}" for form, count in forms.most_common())
    sys.stdout.write(f"{len(entries)} passages, {len(faults)} faults; {counts}\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
