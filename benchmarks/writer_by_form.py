"""How many drafts of each form of question are valid, and of questions in Korean and German, with the embedded model.

    python benchmarks/writer_by_form.py --output benchmarks/results/writer_by_form.json

A draft is what a run writes: the embedded model's rubric for a passage under a guiding text, then its pair under that
rubric; the built-in checks judge it. English passages are those of the quickstart, the others those of the recipes
`korean` and `german`. The writer has learned none of them. An older checkout measures itself: put its folder first on
PYTHONPATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from optimsyn.base.errors import ReplyError
from optimsyn.data.documents import load_document_set
from optimsyn.data.forms.code import Code
from optimsyn.data.passages import split_passages
from optimsyn.llm.factory import load_language_model
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter
from optimsyn.programs.rubric import RubricWriter
from optimsyn.programs.task_shape import TaskShape
from optimsyn.recipe.recipe import Documents, ModelSpec, Recipe
from optimsyn.recipe.sections.synthesis import Checks

FORMS = ("long_answer", "code", "dialogue", "reasoning", "list", "figure", "true_false")
LANGUAGES = ("korean", "german")


async def drafts(recipe: str, form: str, count: int, seed: int) -> dict[str, Any]:
    """Drafts of one form about the passages of a bundled recipe, and the share of valid ones."""
    loaded = Recipe.load(recipe)
    config = Documents(source=f"embedded:{recipe}", passage_words=80, min_words=20)
    passages = split_passages(load_document_set(config).documents, config)[0]
    # As questions in Python have it: with a language, its syntax is checked.
    shape = TaskShape.only(form, Code("python") if form == "code" else None)
    rubrics = RubricWriter(
        load_language_model(ModelSpec(name="embedded", temperature=0.7, max_tokens=160)), loaded.guiding_text, shape
    )
    pairs = PairWriter(load_language_model(ModelSpec(name="embedded", temperature=0.4, max_tokens=240)), shape)
    checks, failed, shown = Checker(Checks()), Counter[str](), []

    async def one(number: int) -> None:
        passage = passages[number % len(passages)]
        try:
            rubric = (await rubrics.acall(passage=passage, kind=form, seed=seed + number)).rubric
            pair = await pairs.awrite(passage, rubric, seed=seed + number, variant="measured")
        except ReplyError as error:
            failed["format"] += 1
            shown.append({"error": str(error)})
            return
        reasons = dict(checks.check(pair, passage).reasons)
        failed.update(list(reasons)[:1])
        shown.append({"question": pair.question, "answer": pair.answer, "details": pair.details, "failed": reasons})

    await asyncio.gather(*(one(number) for number in range(count)))
    valid = count - failed.total()
    return {"drafts": count, "valid": valid, "failed first": dict(failed.most_common()), "pairs": shown}


def main() -> None:
    """Writes the counts and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="counts; the pairs go beside it as *.pairs.json")
    parser.add_argument("--drafts", type=int, default=24, help="of each form")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found, pairs = {}, {}
    for recipe, form in [*(("quickstart", form) for form in FORMS), *((name, "free") for name in LANGUAGES)]:
        name = form if recipe == "quickstart" else recipe
        result = asyncio.run(drafts(recipe, form, args.drafts, args.seed))
        pairs[name] = result.pop("pairs")
        found[name] = result
        sys.stdout.write(f"{name}: {json.dumps(result)}\n")
        sys.stdout.flush()
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(pairs, indent=1, ensure_ascii=False)
    args.output.with_suffix(".pairs.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
