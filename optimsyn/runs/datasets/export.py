"""The final dataset on disk: Parquet with lineage, chat-format JSON lines, and a card for the Hugging Face hub."""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_jsonl, write_text
from optimsyn.base.secrets.redaction import kept_tree
from optimsyn.base.terminal.labels import SOURCE_LABELS
from optimsyn.data.chat import sample_of
from optimsyn.data.forms import label_of
from optimsyn.data.records import Document, Pair, Rubric

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.reward.judgements import Judgement

PARQUET = "train.parquet"
JSONL = "train.jsonl"
CARD = "README.md"
# Columns with the pair's own fields, in order.
_LINEAGE = (
    "question answer choices answer_index kind context quote document_id passage_id char_start char_end variant "
    "generator rubric_model guiding_text rubric seed"
).split()
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def export_dataset(
    folder: Path,
    judged: Sequence[Judgement],
    *,
    recipe: Recipe,
    variant: str,
    losses: Mapping[str, int],
    documents: Sequence[Document] = (),
) -> None:
    """Writes `train.parquet`, `train.jsonl` and `README.md`; each file is written atomically.

    Args:
        folder: Created if missing.
        judged: The selected pairs with their verdicts, in the order of the dataset.
        recipe: Named in the card.
        variant: Source of the rubrics.
        losses: Counts of what became of the candidates, in order; a table in the card.
        documents: The source texts, for their licences.

    Raises:
        DataError: There is no pair to write.
    """
    rows = [row for row in judged if row.pair is not None]
    if not rows:
        raise DataError(f"{folder}: there is no pair to export")
    folder.mkdir(parents=True, exist_ok=True)
    _write_parquet(folder / PARQUET, [kept_tree(lineage_row(row)) for row in rows])
    write_jsonl(folder / JSONL, [_chat_row(row) for row in rows])
    write_text(folder / CARD, dataset_card(rows, recipe=recipe, variant=variant, losses=losses, documents=documents))


def lineage_row(judgement: Judgement) -> dict[str, Any]:
    """One row of the Parquet file: training text, lineage and judgement."""
    pair = _pair_of(judgement)
    sample = sample_of(pair)
    lineage = {**pair.model_dump(mode="json"), "kind": pair.kind}
    return {
        "id": pair.id,
        "messages": [dict(message) for message in sample.messages],
        "prompt": sample.prompt,
        "completion": sample.completion,
        **{name: lineage[name] for name in _LINEAGE},
        **({"form": pair.form, "details": json.dumps(pair.details, ensure_ascii=False)} if pair.form else {}),
        **({"judge": _scores(judgement)} if judgement.judge or judgement.judge_problem else {}),
        "valid": judgement.valid if _measured(judgement) else None,
        "failed_checks": list(judgement.failed),
        "influence": judgement.influence,
        "influence_by_subtask": [
            {"subtask": name, "influence": value} for name, value in sorted(judgement.by_subtask.items())
        ],
        "gradient_norm": judgement.gradient_norm,
        "loss": judgement.loss,
        "reward": judgement.reward if _measured(judgement) else None,
    }


def _scores(judgement: Judgement) -> list[dict[str, Any]]:
    return [{"criterion": name, "score": score} for name, score in judgement.judge.items()]


def dataset_card(
    judged: Sequence[Judgement],
    *,
    recipe: Recipe,
    variant: str,
    losses: Mapping[str, int],
    documents: Sequence[Document] = (),
) -> str:
    """The dataset card: a YAML header that the hub reads, and the provenance for people."""
    from huggingface_hub import DatasetCardData

    header = DatasetCardData(
        pretty_name=recipe.name,
        task_categories=["question-answering", "text-generation"],
        tags=["synthetic", "optimsyn", "influence"],
        size_categories=[next((name for limit, name in _SIZES if len(judged) < limit), "n>1M")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": PARQUET}]}],
    )
    pairs = [_pair_of(row) for row in judged]
    influence = sorted(row.influence for row in judged if row.influence is not None)
    counts = Counter(pair.kind for pair in pairs)
    kinds = list(dict.fromkeys(("free", "multiple_choice", *sorted(counts))))
    is_influence = recipe.influence.is_influence and not recipe.reward.is_control
    scored_by = SOURCE_LABELS[recipe.reward.source] if recipe.reward.is_control else recipe.influence.label
    chosen_by = "their gradient influence on expert validation questions" if is_influence else scored_by
    labels = ", ".join(map(label_of, kinds))
    facts = [
        ("Pairs", str(len(pairs))),
        (f"{labels[:1].upper()}{labels[1:]}", ", ".join(str(counts[kind]) for kind in kinds)),
        ("From passages, documents", f"{len({p.passage_id for p in pairs})}, {len({p.document_id for p in pairs})}"),
        ("Variant", variant),
        ("Generator", ", ".join(sorted({pair.generator for pair in pairs}))),
        ("Rubric model", ", ".join(sorted({pair.rubric_model for pair in pairs if pair.rubric_model})) or "none"),
        ("Target of the influence" if is_influence else "Target", recipe.models.target.name),
        ("Estimator" if is_influence else "Scored by", scored_by),
        ("Seed", recipe.seed_label),
        ("Recipe fingerprint", recipe.fingerprint),
    ]
    if influence:
        middle = influence[len(influence) // 2]
        what = "Influence" if is_influence else "Score"
        facts.insert(3, (f"{what}: least, median, most", f"{influence[0]:.4f}, {middle:.4f}, {influence[-1]:.4f}"))
    judged_by = recipe.models.judge
    judge = (
        "" if judged_by is None else f" `judge` holds the scores, of {recipe.checks.judge.scale}, by {judged_by.name}."
    )
    guiding = next((pair.guiding_text for pair in pairs if pair.guiding_text), "")
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {recipe.name}",
        f"{_plain(recipe.description)}\n\n"
        "Question-answer pairs written by a language model from source texts with optimsyn, and chosen by "
        f"{chosen_by}. They are synthetic and were checked by rules, not by people.",
        _table(("what", "value"), facts),
        "## How rows were lost\n\n" + _table(("candidates", "count"), [(k, str(v)) for k, v in losses.items()]),
        "## Guiding text\n\n" + ("> " + _plain(guiding) if guiding else "None: no rubric was used."),
        "## Columns\n\n"
        "`messages` (chat), `prompt` and `completion` (plain) say the same and are what a model is trained on. "
        "`document_id`, `passage_id`, `char_start` and `char_end` locate the passage, `quote` the sentence that the "
        "answer rests on. `variant`, `generator`, `rubric_model`, `guiding_text`, `rubric` and `seed` tell how the "
        "pair was written; `influence`, `influence_by_subtask`, `gradient_norm`, `loss` and `reward` what the target "
        f"said.{judge}",
        "## Licence\n\n" + _licence(documents),
    ]
    return "\n\n".join(parts) + "\n"


def _licence(documents: Sequence[Document]) -> str:
    licences = sorted({_plain(document.license) for document in documents if document.license})
    source = f"The source texts are under: {', '.join(licences)}. " if licences else ""
    return (
        f"{source}Contexts and quotes are taken from the source texts and stay under their licence; the terms of the "
        "generating model apply to what it wrote. Add a `license` to the header above before you publish."
    )


def _measured(judgement: Judgement) -> bool:
    """Whether the pair was judged in its present form, not changed by a custom stage since."""
    return judgement.influence is not None or not judgement.valid


def _pair_of(judgement: Judgement) -> Pair:
    if judgement.pair is None:
        raise DataError(f"judgement {judgement.key}: has no pair, so it cannot be exported")
    return judgement.pair


def _chat_row(judgement: Judgement) -> dict[str, Any]:
    pair = _pair_of(judgement)
    return {
        "id": pair.id,
        "messages": [dict(message) for message in sample_of(pair).messages],
        "passage_id": pair.passage_id,
        "document_id": pair.document_id,
        "influence": judgement.influence,
        "reward": judgement.reward if _measured(judgement) else None,
    }


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, count = pa.string(), pa.float64(), pa.int64()
    # `form` and `details` exist only where a form needs them, `judge` where there is one.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    types = dict.fromkeys(columns, text)
    types |= dict.fromkeys(("influence", "gradient_norm", "loss", "reward"), number)
    types |= dict.fromkeys(("answer_index", "char_start", "char_end", "seed"), count)
    types |= {
        "valid": pa.bool_(),
        "messages": pa.list_(pa.struct([("role", text), ("content", text)])),
        "choices": pa.list_(text),
        "failed_checks": pa.list_(text),
        "influence_by_subtask": pa.list_(pa.struct([("subtask", text), ("influence", number)])),
        "judge": pa.list_(pa.struct([("criterion", text), ("score", count)])),
        "rubric": pa.struct([(name, text) for name in Rubric.model_fields]),
    }
    # A fixed schema, so that an empty column has the same type in every dataset.
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=pa.schema([(k, types[k]) for k in columns]))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    pq.write_table(table, partial)
    partial.replace(path)


def _table(columns: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|"]
    lines += [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text from a recipe, document or reply, escaped as one line of Markdown."""
    line = html.escape(" ".join(text.split()), quote=False)
    line = re.sub(r"([\\`*\[\]|~!]|(?<!\w)_|_(?!\w)|^[#+-]|^\d+(?=[.)]))", r"\\\1", line)
    # No links with an active scheme such as `javascript:`.
    return re.sub(r"(?i)\b(javascript|vbscript|data):(?=\S)", r"\1&#58;", line)
