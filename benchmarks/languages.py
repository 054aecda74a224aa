"""What share of right pairs the checks refuse in each language, and what share of wrong ones they catch.

The pairs are those of `benchmarks/languages/`, each asked without its passage. Those of every fourth passage were not
looked at while the checks were written: they are held out. English pairs are the human questions of the
bundled domains and the examples that the writer was trained on, which are all right.

    python benchmarks/languages.py [--show ko wrong] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from optimsyn.data.language.detect import language_name
from optimsyn.data.records import Pair, Passage
from optimsyn.programs.checker import Checker
from optimsyn.recipe.sections.synthesis import Checks

HERE = Path(__file__).parent
BUNDLED = HERE.parent / "optimsyn" / "data" / "bundled"


@dataclass(frozen=True)
class Case:
    """A pair with its passage, and whether it is right."""

    language: str
    passage: Passage
    pair: Pair
    valid: bool
    kind: str
    held_out: bool


def main() -> None:
    """Checks all pairs, prints a table and writes `results/languages.json`."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--folder", type=Path, nargs="*", default=[HERE / "languages", HERE / "languages" / "hindi"])
    arguments.add_argument("--show", nargs="*", default=[], help="language, right or wrong: their failures in full")
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    cases = [case for folder in options.folder for case in read(folder)] + list(english())
    checker = Checker(Checks())
    rows: dict[str, dict[str, Any]] = {}
    outcomes: dict[tuple[str, bool, bool], list[bool]] = defaultdict(list)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    began = time.perf_counter()
    for case in cases:
        verdict = checker.check(case.pair, case.passage)
        outcomes[case.language, case.valid, case.held_out].append(verdict.valid)
        if verdict.valid != case.valid:
            kinds[case.language][case.kind] += 1
            shown = options.show and case.language == options.show[0] and not case.held_out
            if shown and case.valid == (options.show[1:] != ["wrong"]):
                print(case.kind, case.pair.id, case.pair.question, "|", case.pair.answer, "|", verdict.reasons)
    each = (time.perf_counter() - began) / max(1, len(cases))
    for language in dict.fromkeys(case.language for case in cases):
        rows[language] = {"missed": dict(kinds[language].most_common())}
        for name, valid in (("right_refused", True), ("wrong_caught", False)):
            for part, held in (("", None), ("_held_out", True)):
                found = [
                    not passed
                    for (spoken, right, held_out), results in outcomes.items()
                    if spoken == language and right == valid and held in (None, held_out)
                    for passed in results
                ]
                if found:
                    rows[language][name + part] = share(found)
        print(language, json.dumps(rows[language], ensure_ascii=False))
    print(f"{1000 * each:.2f} ms a pair")
    if options.write:
        target = HERE / "results" / "languages.json"
        target.write_text(json.dumps({"languages": rows}, ensure_ascii=False, indent=1) + "\n", "utf-8")
        target.with_suffix(".md").write_text(table(rows), "utf-8")


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A table for the docs."""
    lines = [
        "| language | right pairs refused | of passages held out | wrong pairs caught | of passages held out |",
        "|---|---|---|---|---|",
    ]
    for language, row in rows.items():
        cells = [
            _cell(row.get(f"{name}{part}")) for name in ("right_refused", "wrong_caught") for part in ("", "_held_out")
        ]
        lines.append(f"| {language_name(language)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['share']:.1%} [{found['low']:.1%}, {found['high']:.1%}] of {found['n']}"


def share(found: list[bool]) -> dict[str, float]:
    """Count, share and Wilson's interval."""
    interval = binomtest(sum(found), len(found)).proportion_ci(0.95, "wilson")
    return {
        "n": len(found), "share": round(sum(found) / len(found), 4), "low": round(interval.low, 4),
        "high": round(interval.high, 4),
    }  # fmt: skip


def read(folder: Path) -> Iterator[Case]:
    """The pairs of a folder."""
    for file in sorted(folder.glob("??.jsonl")):
        passages = file.with_name(f"{file.stem}_passages.jsonl")
        texts = {row["id"]: row["passage"] for row in map(json.loads, passages.read_text("utf-8").splitlines())}
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            number = int(re.sub(r"\D", "", row["passage_id"]))
            passage = _passage(row["passage_id"], texts[row["passage_id"]])
            pair = _pair(row["id"], passage, row["question"], row["answer"])
            yield Case(row["lang"], passage, pair, row["valid"], row["kind"], number % 4 == 0)


def english() -> Iterator[Case]:
    """The bundled human questions with their whole documents, and the writer's examples."""
    for file in sorted(BUNDLED.glob("*/questions.jsonl")):
        if file.parent.name in ("german", "korean"):
            continue
        documents = map(json.loads, file.with_name("documents.jsonl").read_text("utf-8").splitlines())
        texts = {row["id"]: f"{row.get('title', '')}\n{row['text']}" for row in documents}
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            text = texts.get(row.get("document_id", ""), row.get("context") or "")
            figure = re.fullmatch(r"[\d.,]+", row["answer"])
            # A free answer is not to be calculated.
            if row.get("choices") or not text or (figure and figure.group() not in text):
                continue
            passage = _passage(row["id"], text)
            context = text if row.get("open_book") or row.get("context") else None
            pair = _pair(row["id"], passage, row["question"], row["answer"], context)
            yield Case("en", passage, pair, True, f"bundled {file.parent.name}", False)
    for file in sorted((BUNDLED / "writer").glob("*.jsonl")):
        for row in map(json.loads, file.read_text("utf-8").splitlines()):
            passage = _passage(row["id"], row["passage"], row["title"])
            for place, example in enumerate(row["examples"]):
                # Verdicts are asked in forms of their own.
                if example["form"] == "verdict":
                    continue
                pair = _pair(f"{row['id']}-{place}", passage, example["question"], example["answer"])
                yield Case("en", passage, pair, True, f"writer {example['form']}", False)


def _passage(name: str, text: str, title: str = "") -> Passage:
    return Passage(id=name, document_id=name, title=title, text=text, char_start=0, char_end=len(text))


def _pair(name: str, passage: Passage, question: str, answer: str, context: str | None = None) -> Pair:
    return Pair(id=name, passage_id=passage.id, question=question, answer=answer, context=context)


if __name__ == "__main__":
    main()
