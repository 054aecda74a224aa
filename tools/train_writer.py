"""Trains the writer: a LoRA of the embedded model that writes rubrics and pairs, on the seed corpus.

    python tools/train_writer.py --output WRITER                # resumes
    python tools/train_writer.py --output W --form json         # the pair and the rubric as short JSON, to compare

Each example of `optimsyn/data/bundled/writer` gives two samples: passage and guiding text to rubric, passage and rubric
to pair. A share of the pairs is also trained without a rubric. Every tenth subject is held out, and its loss is in
`writer.json` beside the fingerprints of corpus and script.
"""

from __future__ import annotations

import argparse
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
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from optimsyn.llm.embedded.server import weights_dir
from optimsyn.programs.prompts.writer_prompts import pair_prompt, pair_reply, rubric_prompt, rubric_reply

# Held out: the loss on these subjects shows whether the writer memorises the corpus.
HELD_OUT_EVERY = 10
# Share of the pairs that are also trained without their rubric.
BARE_SHARE = 0.15
FORMS = {"options": "multiple choice, four options", "verdict": "the answer is yes, no or maybe"}
# Share of samples that name the exam's form; in the others only the rubric does.
FORM_SHARE = 0.3


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints and of the adapter")
    parser.add_argument("--form", choices=("lines", "json"), default="lines", help="of rubrics and pairs")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="examples, for a trial")
    return parser.parse_args()


def entries() -> list[Entry]:
    """The corpus, in the order of files and lines.

    Raises:
        SystemExit: A line is no passage; `tools/check_writer_corpus.py` says more.
    """
    rows = []
    for file in sorted(FOLDER.glob("*.jsonl")):
        for number, entry in read(file):
            if isinstance(entry, str):
                raise SystemExit(f"{file}:{number}: {entry}")
            rows.append(entry)
    return rows


def samples(entry: Entry, example: Example, form: str, generator: random.Random) -> list[dict[str, str]]:
    """Prompt and completion of one example's rubric and pair."""
    wish = FORMS.get(example.form, "") if generator.random() < FORM_SHARE else ""
    if form == "lines":
        rubric = rubric_reply(example.rubric)
        pair = pair_reply(example.quote, example.question, example.answer, example.options)
    else:
        rubric = json.dumps(example.rubric.model_dump(), ensure_ascii=False)
        values: dict[str, Any] = {"quote": example.quote, "question": example.question}
        if example.options:
            values["options"] = example.options
        pair = json.dumps({**values, "answer": example.answer}, ensure_ascii=False)
    rows = [
        {"prompt": rubric_prompt(entry.passage, example.guiding_text, wish), "completion": rubric},
        {"prompt": pair_prompt(entry.passage, example.rubric, wish), "completion": pair},
    ]
    if generator.random() < BARE_SHARE:
        # Without a rubric only this names the form.
        rows.append({"prompt": pair_prompt(entry.passage, None, FORMS.get(example.form, "")), "completion": pair})
    return rows


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


def main() -> None:
    """Trains, and writes the adapter to OUTPUT/adapter."""
    args = arguments()
    generator = random.Random(args.seed)
    corpus = entries()
    subjects = sorted({entry.subject for entry in corpus})
    held_out = set(subjects[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY])
    parts: dict[bool, list[dict[str, str]]] = {False: [], True: []}
    for entry in corpus:
        for example in entry.examples:
            parts[entry.subject in held_out] += samples(entry, example, args.form, generator)
    generator.shuffle(parts[False])
    if args.limit:
        parts = {part: rows[: args.limit] for part, rows in parts.items()}
    folder = weights_dir()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = SFTConfig(
        output_dir=str(args.output / "checkpoints"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.lr,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=10,
        eval_strategy="epoch",
        save_steps=50,
        save_total_limit=1,
        seed=args.seed,
        bf16=torch.cuda.is_available(),
        report_to="none",
        max_length=1024,
        completion_only_loss=True,
        dataset_num_proc=None,
    )
    lora = LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(parts[False]),
        eval_dataset=Dataset.from_list(parts[True]),
        processing_class=tokenizer,
        peft_config=lora,
    )
    began = time.monotonic()
    resumable = any((args.output / "checkpoints").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resumable or None)
    minutes = (time.monotonic() - began) / 60
    loss = trainer.evaluate()["eval_loss"]
    part, adapter = args.output / "adapter.part", args.output / "adapter"
    trained = trainer.model
    if not isinstance(trained, PeftModel):
        raise SystemExit("the trainer returned no adapter; its version of peft is not known to this script")
    trained.save_pretrained(part)
    narrow(part)
    facts = {
        "corpus": digest(list(FOLDER.glob("*.jsonl"))),
        "script": digest([Path(__file__), Path(sys.modules[pair_prompt.__module__].__file__ or "")]),
        "held_out_subjects": sorted(held_out),
        "held_out_loss": loss,
        "samples": len(parts[False]),
        "minutes": minutes,
        "settings": {key: value for key, value in vars(args).items() if key != "output"},
    }
    (part / "writer.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(adapter, ignore_errors=True)
    part.replace(adapter)
    sys.stdout.write(f"{adapter}: held-out loss {loss:.3f}, {minutes:.0f} minutes\n")


if __name__ == "__main__":
    main()
