"""How well the writer obeys: contrasting rubrics on passages that it has not seen.

    python benchmarks/writer.py --output pairs.jsonl                        # 200 held-out passages, four rubrics each
    python benchmarks/writer.py --output pairs.jsonl --documents FOLDER     # FOLDER/<domain>/documents.jsonl
    python benchmarks/writer.py --output pairs.jsonl --prompts FOLDER …     # of the practice (tools/prefer_writer.py)
    python benchmarks/writer.py --output pairs.jsonl --adapter WRITER       # transformers with this adapter, for a GPU

Without `--adapter` the pairs come from the product: `Drafter` with the model `embedded`, as in a run. So an older
checkout measures itself: put its folder first on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from writer_forms import FORMS  # noqa: E402
from writer_pairs import Outcome, Wish, by_product, checker, outcome, passage_of, replies, shares  # noqa: E402
from writer_rubrics import MEASURED, rubric_for  # noqa: E402
from writer_wishes import NEEDS, is_kept_out, passages, wishes_of  # noqa: E402

from optimsyn.data.passages import split_passages  # noqa: E402
from optimsyn.data.records import Document, Rubric  # noqa: E402
from optimsyn.recipe.recipe import Documents, ModelSpec  # noqa: E402

HELD_OUT = ROOT / "benchmarks" / "writer_held_out"
CONTRASTS = 4


def held_out_wishes() -> list[Wish]:
    """The rubrics of `benchmarks/writer_held_out`."""
    wishes = []
    for file in sorted(HELD_OUT.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            passage = passage_of(row["id"], row["passage"], row["title"])
            wishes += [Wish(passage, each["form"], Rubric(**each["rubric"])) for each in row["wanted"]]
    return wishes


def document_wishes(folder: Path, count: int, seed: int) -> dict[str, list[Wish]]:
    """For passages of each domain, four rubrics that suit any passage, of four forms that this one allows."""
    draw = random.Random(seed)
    domains = {}
    for file in sorted(folder.glob("*/documents.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        draw.shuffle(rows)
        documents = [Document(id=row["id"], title=row.get("title", ""), text=row["text"]) for row in rows[: 3 * count]]
        long_enough = [
            p for p in split_passages(documents, Documents(source="documents.jsonl"))[0] if len(p.text.split()) >= 50
        ]
        wishes = []
        for passage in draw.sample(long_enough, min(count, len(long_enough))):
            allowed = [form for form in FORMS if form not in NEEDS or NEEDS[form].search(passage.text)]
            wishes += [
                Wish(passage, form, rubric_for(form, MEASURED, draw)) for form in draw.sample(allowed, CONTRASTS)
            ]
        domains[file.parent.name] = wishes
    return domains


def by_transformers(wishes: list[Wish], adapter: Path, seed: int) -> list[Outcome]:
    """Pairs of the weights with an adapter."""
    import torch

    from optimsyn.llm.local.loading import load_causal_lm
    from optimsyn.programs.prompts.writer_prompts import pair_prompt

    model, tokenizer = load_causal_lm(ModelSpec(name="embedded"), adapter=adapter)
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    prompts = [pair_prompt(wish.passage.text, wish.rubric) for wish in wishes]
    size = 1024 if torch.cuda.is_available() else 16
    texts = replies(model, tokenizer, prompts, seed=seed, batch_size=size)
    checks = checker()
    return [outcome(wish, text, checks, n) for n, (wish, text) in enumerate(zip(wishes, texts, strict=True))]


def main() -> None:
    """Writes the pairs and prints their shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="pairs, one a line; the shares go beside it")
    parser.add_argument("--documents", type=Path, help="folder of domains, each with a documents.jsonl")
    parser.add_argument("--prompts", type=Path, nargs="+", help="folders of practice: its tenth that is kept out")
    parser.add_argument("--count", type=int, default=50, help="passages of each domain")
    parser.add_argument("--adapter", type=Path, help="folder of an adapter; without it the product writes")
    parser.add_argument("--temperature", type=float, help="of the product; without it its default")
    parser.add_argument("--redrafts", type=int, default=0, help="of the product: checks.redrafts")
    parser.add_argument("--limit", type=int, help="wishes, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.prompts:
        kept = [row for row in passages(args.prompts) if is_kept_out(row)]
        sources = {"kept out": [wish for row in kept for wish in wishes_of(row, CONTRASTS, args.seed)]}
    elif args.documents is None:
        sources = {"held out": held_out_wishes()}
    else:
        sources = document_wishes(args.documents, args.count, args.seed)
    result, lines = {}, []
    for name, all_wishes in sources.items():
        wishes = all_wishes[: args.limit]
        seeds = range(args.seed, args.seed + len(wishes))
        outcomes = (
            by_transformers(wishes, args.adapter, args.seed)
            if args.adapter
            else asyncio.run(by_product(wishes, seeds, temperature=args.temperature, redrafts=args.redrafts))
        )
        result[name] = shares(outcomes)
        lines += [json.dumps({"source": name, **each.row()}, ensure_ascii=False) + "\n" for each in outcomes]
        sys.stdout.write(f"{name}: {json.dumps(result[name])}\n")
        sys.stdout.flush()
    args.output.write_text("".join(lines), encoding="utf-8")
    args.output.with_suffix(".shares.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
