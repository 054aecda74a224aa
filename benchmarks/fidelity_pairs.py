"""Pairs of the loop's own generator for the fidelity study: several each for some passages, one each for others.

    python benchmarks/fidelity_pairs.py --data DATA --output PAIRS --folder RUNS

DATA holds a folder per domain with `documents.jsonl` (id, title, text) and `validation.jsonl` (question, answer, and
choices with answer_index where they apply). Rubrics and pairs are generated as in a run's first draft, under the
guiding text of the domain's recipe; the rubrics of a passage differ in their seed, and so do the pairs of a rubric.
Only valid pairs are kept. Replies are cached in the run folder, so that a killed script can resume.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from pathlib import Path
from typing import Any

from optimsyn.base.errors import ReplyError
from optimsyn.base.files import iter_json, write_jsonl
from optimsyn.data.records import Pair
from optimsyn.llm.language_model import run_sync
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.stages.prepare import run as prepare
from optimsyn.stages.shared import Tools

RECIPES = Path(__file__).parent.parent / "recipes"
DOMAINS = ("medicine", "law", "humanities", "finance", "social_sciences")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder a domain")
    parser.add_argument("--output", type=Path, required=True, help="receives <domain>.jsonl")
    parser.add_argument("--folder", type=Path, required=True, help="runs and their replies; kept between calls")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--passages", type=int, default=8, help="with several pairs")
    parser.add_argument("--rubrics", type=int, default=4, help="of each of them")
    parser.add_argument("--pairs", type=int, default=3, help="under each rubric")
    parser.add_argument("--single", type=int, default=32, help="further passages, with one pair each")
    parser.add_argument("--documents", type=int, default=60, help="a random part of the documents")
    parser.add_argument("--answer-words", type=int, default=8, help="questions with longer answers are left out")
    return parser.parse_args()


def recipe_of(args: argparse.Namespace, domain: str) -> Recipe:
    """The domain's recipe on these documents and questions, with the embedded model in every role."""
    folder: Path = args.folder / "data" / domain
    documents = list(iter_json(args.data / domain / "documents.jsonl"))
    random.Random(5).shuffle(documents)
    write_jsonl(
        folder / "documents.jsonl", [{k: d[k] for k in ("id", "title", "text")} for d in documents[: args.documents]]
    )
    questions: dict[str, dict[str, Any]] = {}
    for row in iter_json(args.data / domain / "validation.jsonl"):
        if 0 < len(row["answer"].split()) <= args.answer_words:
            fields = ("id", "question", "answer", "choices", "answer_index")
            questions.setdefault(row["question"].lower(), {k: row[k] for k in fields if row.get(k) is not None})
    write_jsonl(folder / "questions.jsonl", list(questions.values())[:400])
    embedded: dict[str, Any] = {"name": "embedded"}
    raw = {
        "name": domain.replace("_", "-"),
        "seed": 7,
        "documents": {"source": str(folder / "documents.jsonl")},
        "questions": {"validation": str(folder / "questions.jsonl")},
        "guiding_text": Recipe.load(RECIPES / f"{domain}.yaml").guiding_text,
        "models": {
            "generator": {**embedded, "temperature": 0.4, "max_tokens": 200},
            "rubric": {**embedded, "temperature": 0.8, "max_tokens": 160},
            "target": {**embedded, "max_length": 384},
        },
    }
    return Recipe.parse(raw, f"{domain}, for the fidelity study")


async def write(tools: Tools, args: argparse.Namespace) -> list[Pair]:
    """All valid pairs of one domain."""
    writer = tools.rubric_writer(tools.recipe.guiding_text)

    async def write_pair(place: int, rubric_number: int, pair_number: int) -> Pair | None:
        passage = tools.passage_order[place % len(tools.passage_order)]
        seed = 7000 + place
        kind = tools.shape.kind_for(seed)
        try:
            written = await writer.aforward(passage=passage, kind=kind, seed=100 * seed + rubric_number)
            pair_seed = seed + 100_000 * pair_number
            pair = await tools.pair_writer.awrite(passage, written.rubric, seed=pair_seed, variant="static")
        except ReplyError:
            return None
        return pair if tools.checker.check(pair, passage).valid else None

    several = range(args.single, args.single + args.passages)
    asked = [write_pair(place, 0, 0) for place in range(args.single)]
    asked += [write_pair(place, r, p) for p in range(args.pairs) for place in several for r in range(args.rubrics)]
    return [pair for pair in await asyncio.gather(*asked) if pair is not None]


def main() -> None:
    """Writes the pairs of every domain that has none yet."""
    args = arguments()
    for domain in args.domains:
        file = args.output / f"{domain}.jsonl"
        if file.is_file():
            continue
        run = Run.open(recipe_of(args, domain), args.folder / "runs")
        prepare(run)
        pairs = run_sync(write(Tools(run), args))
        write_jsonl(file, pairs)
        print(f"{domain}: {len(pairs)} valid pairs of {len({pair.passage_id for pair in pairs})} passages", flush=True)


if __name__ == "__main__":
    main()
