"""Trains the writer: a LoRA of the embedded model that writes rubrics and pairs, on the seed corpus.

    python tools/train_writer.py --output WRITER                # resumes
    python tools/train_writer.py --output W --form json         # the pair and the rubric as short JSON, to compare
    python tools/train_writer.py --output W --corpus benchmarks/writer_languages   # German and Korean examples as well
    python tools/train_writer.py --output W --corpus benchmarks/writer_forms       # long answers, code, lists …
    python tools/train_writer.py --output W --corpus FOLDER --start optimsyn/data/bundled/writer/adapter   # goes on

Each example of `optimsyn/data/bundled/writer` gives two samples: passage and guiding text to rubric, passage and rubric
to pair. A share of the pairs is also trained without a rubric. The examples of `benchmarks/writer_forms` name their
form in both prompts; all of them are learned, and none is practised. Then it practises: it writes pairs under rubrics
of every other form, and learns those that have the form and pass the checks (rejection sampling, as in STaR, arXiv
2203.14465). Every tenth subject is held out of both, and what it does there is in `writer.json` beside the fingerprints
of corpus and scripts.

With `--start` it goes on from a finished adapter: it learns the further folders, and a part of the bundled corpus again
lest it forget.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from check_writer_corpus import FOLDER, Entry, Example, read
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig
from writer_form_corpus import form_entries, form_samples, is_form_corpus
from writer_forms import FORMS
from writer_pairs import Wish, checker, outcome, passage_of, replies, shares
from writer_rubrics import PRACTICE, rubric_for

from optimsyn.data.passages import split_passages
from optimsyn.data.records import Document, Rubric
from optimsyn.llm.embedded.server import EMBEDDED_ID
from optimsyn.programs.prompts.writer_prompts import pair_prompt, pair_reply, rubric_prompt, rubric_reply
from optimsyn.recipe.sections.data import Documents
from optimsyn.recipe.sections.models import Lora, TargetSpec
from optimsyn.target.target import Target
from optimsyn.training.fine_tuning import latest_checkpoint
from optimsyn.training.trainer import TargetTrainer

# Held out: the writer's pairs on these subjects show whether it memorises the corpus.
HELD_OUT_EVERY = 10
# Share of the pairs that are also trained without their rubric.
BARE_SHARE = 0.15
EXAM_FORMS = {"options": "multiple choice, four options", "verdict": "the answer is yes, no or maybe"}
# Share of samples that name the exam's form; in the others only the rubric does.
FORM_SHARE = 0.3
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Texts without pairs: practice on the corpus alone would teach its names and not the reading.
DOCUMENTS = Path(__file__).parents[1] / "benchmarks" / "documents" / "social_sciences.jsonl"
Row = dict[str, str]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and of the adapter")
    parser.add_argument("--form", choices=("lines", "json"), default="lines", help="of rubrics and pairs")
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a further folder of examples")
    parser.add_argument("--start", type=Path, help="folder of a finished adapter to go on from")
    parser.add_argument("--replay", type=float, default=0.2, help="share of the bundled corpus that --start repeats")
    parser.add_argument("--rubrics", type=float, default=1.0, help="share of the samples of rubrics that are learned")
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True, help="write held-out pairs")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--practice-epochs", type=float, default=2.0, help="over corpus and practice together; 0: none")
    parser.add_argument("--samples", type=int, default=2, help="practice pairs for each passage and form")
    parser.add_argument("--passages", type=Path, nargs="*", default=[DOCUMENTS], help="more texts to practise on")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rows-per-pass", type=int, default=16, help="of a batch; fewer take less memory")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="samples, for a trial")
    return parser.parse_args()


def corpus_files(further: list[Path]) -> list[Path]:
    """The files of the bundled corpus and of further folders.

    Raises:
        SystemExit: A folder has no examples.
    """
    for folder in further:
        if not any(folder.glob("*.jsonl")):
            raise SystemExit(f"--corpus {folder}: no *.jsonl in it; name a folder such as benchmarks/writer_languages")
    return [file for folder in (FOLDER, *further) for file in sorted(folder.glob("*.jsonl"))]


def entries(files: list[Path]) -> list[Entry]:
    """The corpus, in the order of files and lines.

    Raises:
        SystemExit: A line is no passage; `tools/check_writer_corpus.py` says more.
    """
    rows = []
    for file in files:
        for number, entry in read(file):
            if isinstance(entry, str):
                raise SystemExit(f"{file}:{number}: {entry}")
            rows.append(entry)
    return rows


def pair_text(form: str, quote: str, question: str, answer: str, options: tuple[str, ...]) -> str:
    """The reply that holds a pair."""
    if form == "lines":
        return pair_reply(quote, question, answer, options)
    values: dict[str, Any] = {"quote": quote, "question": question}
    if options:
        values["options"] = options
    return json.dumps({**values, "answer": answer}, ensure_ascii=False)


def rubric_text(form: str, rubric: Rubric) -> str:
    """The reply that holds a rubric."""
    return rubric_reply(rubric) if form == "lines" else json.dumps(rubric.model_dump(), ensure_ascii=False)


def samples(entry: Entry, example: Example, form: str, draw: random.Random) -> list[Row]:
    """Prompt and completion of one example's rubric and pair."""
    exam = EXAM_FORMS.get(example.form, "")
    wish = exam if draw.random() < FORM_SHARE else ""
    pair = pair_text(form, example.quote, example.question, example.answer, example.options)
    rows = [
        {
            "prompt": rubric_prompt(entry.passage, example.guiding_text, wish),
            "completion": rubric_text(form, example.rubric),
        },
        {"prompt": pair_prompt(entry.passage, example.rubric, wish), "completion": pair},
    ]
    if draw.random() < BARE_SHARE:
        # Without a rubric only this names the form.
        rows.append({"prompt": pair_prompt(entry.passage, None, exam), "completion": pair})
    return rows


def practice(target: Target, corpus: list[Entry], args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The writer's own pairs that have the form of their rubric and are valid, and the shares of all of them."""
    draw = random.Random(args.seed)
    passages = [passage_of(entry.id, entry.passage, entry.title) for entry in corpus]
    for file in args.passages:
        documents = [Document(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        passages += split_passages(documents[: args.limit], Documents(source=str(file)))[0]
    wishes = [
        Wish(passage, form, rubric_for(form, PRACTICE, draw))
        for passage in passages
        for form in FORMS
        for _ in range(args.samples)
    ]
    outcomes = written(target, wishes, args.seed)
    rows, seen = [], set()
    for each in outcomes:
        if not (each.pair and each.obeys and each.valid):
            continue
        key = (each.wish.passage.id, each.pair.question.lower())
        if key in seen:
            continue
        seen.add(key)
        text = pair_text(args.form, each.pair.quote, each.pair.question, each.pair.answer, each.pair.choices or ())
        rows.append({"prompt": pair_prompt(each.wish.passage.text, each.wish.rubric), "completion": text})
    return rows, shares(outcomes)


def written(target: Target, wishes: list[Wish], seed: int) -> list[Any]:
    """The outcomes of wishes under the target's present weights."""
    model = copy.deepcopy(target.model).merge_and_unload().eval()
    size = 1024 if target.device.type == "cuda" else 16
    prompts = [pair_prompt(wish.passage.text, wish.rubric) for wish in wishes]
    texts = replies(model, target.tokenizer, prompts, seed=seed, batch_size=size)
    checks = checker()
    return [outcome(wish, text, checks, n) for n, (wish, text) in enumerate(zip(wishes, texts, strict=True))]


def encoded(target: Target, rows: list[Row]) -> Dataset:
    """Token ids, and labels of the completion and the end of the text."""
    tokenizer, columns = target.tokenizer, {"input_ids": [], "labels": []}
    for row in rows:
        prompt = tokenizer(row["prompt"]).input_ids
        completion = [*tokenizer(row["completion"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        columns["input_ids"].append(prompt + completion)
        columns["labels"].append([-100] * len(prompt) + completion)
    return Dataset.from_dict(columns)


def fit(target: Target, rows: list[Row], folder: Path, epochs: float, lr: float, args: argparse.Namespace) -> None:
    """Trains on rows; resumes at the last checkpoint."""
    random.Random(args.seed).shuffle(rows)
    passes = min(args.rows_per_pass, args.batch_size)
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=passes,
        gradient_accumulation_steps=args.batch_size // passes,
        # Samples of like length in a pass, so that little of it is padding.
        train_sampling_strategy="group_by_length",
        learning_rate=lr,
        warmup_steps=10,
        optim="adamw_torch",
        weight_decay=0.0,
        logging_steps=20,
        save_steps=100,
        save_total_limit=1,
        seed=args.seed,
        data_seed=args.seed,
        use_cpu=target.device.type == "cpu",
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        max_length=None,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = TargetTrainer(target=target, args=settings, train_dataset=encoded(target, rows), callbacks=[])
    if target.device.type == "cpu":
        trainer.remove_callback(PrinterCallback)
    target.model.train()
    last = latest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    target.model.eval()


def held_out(target: Target, corpus: list[Entry], seed: int) -> dict[str, Any]:
    """What the writer does under the corpus's rubrics on subjects that it has not seen."""
    wishes = [
        Wish(passage_of(entry.id, entry.passage, entry.title), example.form, example.rubric)
        for entry in corpus
        for example in entry.examples
    ]
    return shares(written(target, wishes, seed))


def digest(files: list[Path]) -> str:
    """SHA-256 over names and contents, in hex."""
    sha = hashlib.sha256()
    for file in sorted(files):
        sha.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return sha.hexdigest()


def narrow(folder: Path) -> None:
    """The adapter's weights in bfloat16: half the size, and more digits than the quantised model has."""
    file = folder / "adapter_model.safetensors"
    save_file({name: value.to(torch.bfloat16).contiguous() for name, value in load_file(file).items()}, file)


def save_adapter(target: Target, folder: Path) -> None:
    """Writes the adapter as it ships: narrow, and named after the embedded model."""
    target.model.save_pretrained(folder)
    narrow(folder)
    config = folder / "adapter_config.json"
    values = {**json.loads(config.read_text(encoding="utf-8")), "base_model_name_or_path": EMBEDDED_ID}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(target: Target, facts: dict[str, Any], args: argparse.Namespace) -> None:
    """Writes the adapter and what is known of it to OUTPUT/adapter, in the place of an earlier one."""
    part, adapter = args.output / "adapter.part", args.output / "adapter"
    save_adapter(target, part)
    here = Path(__file__).parent
    scripts = [Path(__file__), *(here / f"writer_{name}.py" for name in ("form_corpus", "forms", "pairs", "rubrics"))]
    facts |= {
        "corpus": digest(corpus_files(args.corpus)),
        "scripts": digest([*scripts, Path(sys.modules[pair_prompt.__module__].__file__ or "")]),
        "settings": {
            key: value for key, value in vars(args).items() if key not in ("output", "passages", "corpus", "start")
        },
    }
    (part / "writer.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(adapter, ignore_errors=True)
    part.replace(adapter)
    sys.stdout.write(f"{adapter}: {json.dumps(facts)}\n")
    sys.stdout.flush()


def main() -> None:
    """Trains, and writes the adapter to OUTPUT/adapter: after the corpus, and again after the practice."""
    args = arguments()
    draw = random.Random(args.seed)
    files = corpus_files(args.corpus)
    of_forms = [file for file in files if is_form_corpus(file)]
    corpus = entries([file for file in files if file not in of_forms])
    before = json.loads((args.start / "writer.json").read_text(encoding="utf-8")) if args.start else {}
    bundled = {entry.subject for entry in entries(corpus_files([]))}
    subjects = sorted({entry.subject for entry in corpus} - (bundled if before else set()))
    out = {*subjects[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY], *before.get("held_out_subjects", [])}
    learned = [entry for entry in corpus if entry.subject not in out]
    rest = [entry for entry in corpus if entry.subject in out]
    rows = []
    for entry in learned:
        known = [row for example in entry.examples for row in samples(entry, example, args.form, draw)]
        share = args.replay if before and entry.subject in bundled else 1
        rows += draw.sample(known, round(share * len(known))) if share < 1 else known
    rows = rows[: args.limit]
    rows += [row for entry in form_entries(of_forms) for row in form_samples(entry, args.form)][: args.limit]
    if args.rubrics < 1:
        rows = [row for row in rows if not row["prompt"].endswith("\nRubric:\n") or draw.random() < args.rubrics]
    began = time.monotonic()
    target = Target.load(
        TargetSpec(name="embedded", lora=Lora(r=args.rank, alpha=2 * args.rank, target_modules=MODULES)), seed=args.seed
    )
    if args.start:
        set_peft_model_state_dict(target.model, load_file(args.start / "adapter_model.safetensors"))
    args.output.mkdir(parents=True, exist_ok=True)
    fit(target, rows, args.output / "corpus", args.epochs, args.lr, args)
    facts: dict[str, Any] = {"samples": len(rows), "held_out_subjects": sorted(out)}
    if before:
        facts["start"] = {key: before[key] for key in ("corpus", "samples", "practice", "mean") if key in before}
    facts["minutes"] = (time.monotonic() - began) / 60
    save(target, facts, args)
    if args.practice_epochs:
        file = args.output / "practice.json"
        if file.is_file():
            own, facts["practice"] = json.loads(file.read_text(encoding="utf-8"))
        else:
            own, facts["practice"] = practice(target, learned[: args.limit], args)
            file.write_text(json.dumps([own, facts["practice"]], ensure_ascii=False), encoding="utf-8")
        facts["practice"]["learned"] = len(own)
        fit(target, rows + own, args.output / "practised", args.practice_epochs, args.lr / 2, args)
    facts["minutes"] = (time.monotonic() - began) / 60
    if args.measure:
        facts["held_out"] = held_out(target, rest[: args.limit], args.seed)
    save(target, facts, args)


if __name__ == "__main__":
    main()
