"""What a pair's reward can be read off: the words of its rubric, or those of the pair itself.

    python benchmarks/rubric_words.py runs/humanities-… runs/medicine-…

For each run: ridge regression of the influence of valid pairs, and of validity, both less their passage's mean, on
words and pairs of words, in ten folds over passages; the best of four penalties. The correlation of prediction and
value stands beside the same with values shuffled within passages (95th percentile of a hundred shuffles): below it,
nothing was found. An optimiser that changes rubrics can at most gain what their words decide.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

_PENALTIES = (0.3, 1.0, 3.0, 10.0)
_FOLDS = 10
_SHUFFLES = 100
_FEWEST = 4  # texts that have a word


def features(texts: Sequence[str]) -> np.ndarray:
    """Words and pairs of neighbouring words that a few texts have, centred, each row of length 1: [n, words]."""
    rows = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        rows.append({*words, *(f"{a} {b}" for a, b in pairwise(words))})
    counts = Counter(word for row in rows for word in row)
    places = {word: index for index, word in enumerate(word for word in counts if counts[word] >= _FEWEST)}
    table = np.zeros((len(texts), len(places)))
    for index, row in enumerate(rows):
        table[index, [places[word] for word in row if word in places]] = 1
    table -= table.mean(0)
    return np.asarray(table / (np.linalg.norm(table, axis=1, keepdims=True) + 1e-9))


def correlation(kernel: np.ndarray, values: np.ndarray, folds: Sequence[np.ndarray]) -> float:
    """The correlation of values with their predictions from other passages; the best of the penalties."""
    best = -1.0
    for penalty in _PENALTIES:
        predicted = np.zeros(len(values))
        for fold in folds:
            rest = ~fold
            mean = values[rest].mean()
            inner = kernel[np.ix_(rest, rest)] + penalty * np.eye(int(rest.sum()))
            predicted[fold] = kernel[np.ix_(fold, rest)] @ np.linalg.solve(inner, values[rest] - mean)
        if predicted.std():
            best = max(best, float(np.corrcoef(predicted, values)[0, 1]))
    return best


def within(values: np.ndarray, passages: np.ndarray) -> np.ndarray:
    """Values less their passage's mean."""
    result = values.copy()
    for passage in set(passages):
        result[passages == passage] -= values[passages == passage].mean()
    return result


def measured(rows: Sequence[dict[str, Any]], value: str) -> dict[str, Any]:
    """The correlations of one value with each text, and what shuffled values give."""
    passages = np.array([row["passage_id"] for row in rows])
    values = within(np.array([float(row[value]) for row in rows]), passages)
    random = np.random.default_rng(0)
    names = sorted(set(passages))
    random.shuffle(names)
    folds = [np.isin(passages, part) for part in np.array_split(names, _FOLDS)]
    texts = {
        "rubric": [" ".join(map(str, row["rubric"].values())) for row in rows],
        "pair": [f"{row['pair']['question']} . {row['pair']['answer']}" if row["pair"] else "" for row in rows],
    }
    result: dict[str, Any] = {"rows": len(rows), "passages": len(names), "sd": float(values.std())}
    for name, text in texts.items():
        table = features(text)
        kernel = table @ table.T
        chance = []
        for _ in range(_SHUFFLES):
            shuffled = values.copy()
            for passage in names:
                here = np.flatnonzero(passages == passage)
                shuffled[here] = shuffled[random.permutation(here)]
            chance.append(correlation(kernel, shuffled, folds))
        result[name] = round(correlation(kernel, values, folds), 3)
        result[f"{name}, shuffled"] = round(float(np.quantile(chance, 0.95)), 3)
    return result


def markdown(result: dict[str, Any]) -> str:
    """A table with a row for each run and value."""
    lines = ["| run | value | pairs | SD | rubric's words | pair's words |", "|---|---|---:|---:|---:|---:|"]
    for run, values in result.items():
        for value, row in values.items():
            cells = " | ".join(f"{row[text]:.2f} ({row[f'{text}, shuffled']:.2f})" for text in ("rubric", "pair"))
            lines.append(f"| {run} | {value} | {row['rows']} | {row['sd']:.3f} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, whose rewards.jsonl is read")
    parser.add_argument("--output", type=Path, help="a JSON file; a table goes beside it")
    args = parser.parse_args()
    result = {}
    for run in args.runs:
        lines = (run / "rewards.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row["rubric"] and row["unjudged"] is None]
        result[run.name.split("-")[0]] = {
            "influence of valid pairs": measured([row for row in rows if row["valid"]], "influence"),
            "validity": measured(rows, "valid"),
        }
        print(markdown(result), flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
