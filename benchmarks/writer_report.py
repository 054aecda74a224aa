"""The pages on the writer: examples of the corpus, how well the writer obeys, and pairs as they came.

    python benchmarks/writer_report.py --before B.jsonl C.jsonl --after D.jsonl E.jsonl

Reads what `benchmarks/writer.py` wrote (with the shares beside it) and writes benchmarks/results/writer*.md.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CORPUS = ROOT / "optimsyn" / "data" / "bundled" / "writer"
EXAMPLES, PAIRS = 20, 50
_DIFFERENT = "different pairs of a passage"
_SHARES = {
    "obey": "has the form that the rubric asks for",
    "valid at first": "passes the checks as first written",
    "valid": "passes the checks",
    "both": "has the form and passes",
}


def examples() -> str:
    """Twenty examples of the corpus, drawn by chance."""
    texts = [file.read_text("utf-8") for file in sorted(CORPUS.glob("*.jsonl"))]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    pairs = [(row, example) for row in rows for example in row["examples"]]
    lines = []
    for row, example in random.Random(0).sample(pairs, EXAMPLES):
        rubric = "; ".join(example["rubric"].values())
        lines += [
            f"**{row['title']}** ({row['domain'].replace('_', ' ')}, form: {example['form']})",
            "",
            f"> {row['passage']}",
            "",
            f"- Guiding text: {example['guiding_text']}",
            f"- Rubric: {rubric}",
            f"- Question: {example['question']}",
            *([f"- Options: {' | '.join(example['options'])}"] if example.get("options") else []),
            f"- Answer: {example['answer']}",
            "",
        ]
    return "\n".join(lines)


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The shares of both, a source a row, and by form."""
    columns = ["before", "now"] if before else ["now"]

    def row(*first: str, old: str | None, new: str) -> str:
        return f"| {' | '.join([*first, *([old or '–'] if before else []), new])} |"

    lines = [f"| passages | pairs | share that | {' | '.join(columns)} |", f"|---|--:|---|{'--:|' * len(columns)}"]
    for source, shares in after.items():
        earlier = before.get(source, {})
        name, pairs = source.replace("_", " "), str(shares["pairs"])
        for key, words in _SHARES.items():
            if key in shares:
                old = f"{earlier[key]:.0%}" if key in earlier else None
                lines.append(row(name, pairs, words, old=old, new=f"{shares[key]:.0%}"))
        old = f"{earlier[_DIFFERENT]:.2f}" if earlier else None
        lines.append(
            row(name, pairs, f"different pairs, of {shares['of']:.0f}", old=old, new=f"{shares[_DIFFERENT]:.2f}")
        )
    source, shares = next(iter(after.items()))
    lines += ["", f"By form ({source}):", ""]
    columns = [f"has it, {column}" for column in columns] if before else ["has it"]
    lines += [f"| form | {' | '.join(columns)} | valid |", f"|---|{'--:|' * (len(columns) + 1)}"]
    for form, share in shares["obey by form"].items():
        old = f"{before[source]['obey by form'][form]:.0%}" if source in before else None
        lines.append(row(form, old=old, new=f"{share:.0%} | {shares['valid by form'][form]:.0%}"))
    return "\n".join(lines)


def pairs_table(rows: list[dict[str, Any]]) -> str:
    """Fifty pairs, drawn by chance, bad ones included."""
    lines = ["| rubric's question type | question | answer | |", "|---|---|---|---|"]
    for row in random.Random(1).sample(rows, min(PAIRS, len(rows))):
        marks = [] if row["obeys"] else ["other form"]
        marks += list(row["failed"])
        answer = row["answer"] or ""
        if row["options"]:
            answer += f" (of: {'; '.join(row['options'])})"
        cells = [row["rubric"], row["question"] or "no pair could be read", answer, ", ".join(marks)]
        lines.append("| " + " | ".join(" ".join(str(cell).replace("|", "/").split()) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, nargs="*", default=[], help="pairs of the commit before")
    parser.add_argument("--after", type=Path, nargs="+", required=True, help="pairs of the present one")
    args = parser.parse_args()

    def shares(files: list[Path]) -> dict[str, Any]:
        return {k: v for f in files for k, v in json.loads(f.with_suffix(".shares.json").read_text("utf-8")).items()}

    before, after = shares(args.before), shares(args.after)
    rows = [json.loads(line) for file in args.after for line in file.read_text("utf-8").splitlines()]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "writer.json").write_text(json.dumps({"before": before, "now": after}, indent=2) + "\n", "utf-8")
    (RESULTS / "writer.md").write_text(table(before, after) + "\n", "utf-8")
    (RESULTS / "writer_pairs.md").write_text(pairs_table(rows) + "\n", "utf-8")
    (RESULTS / "writer_examples.md").write_text(examples() + "\n", "utf-8")


if __name__ == "__main__":
    main()
