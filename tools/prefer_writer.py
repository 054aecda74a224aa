"""Preferences of the writer: of its own pairs under one rubric, those that obey and are valid against those that don't.

    python tools/prefer_writer.py --output P --prompts benchmarks/writer_prompts benchmarks/writer_practice   # resumes

It goes on from the adapter that ships (or `--start`). For each rubric of the prompts it writes several pairs, as a
run does (`PairWriter`, the model `embedded`), to OUTPUT/samples.jsonl; a function for each form and the built-in
checks judge them, and a `grade` says what a reader thought of some: 0 wrong or without sense, 1 with a flaw, 2 right.
Pairs with their rubric's form that pass the checks are better than others, of higher grade better than of lower, and
those that stand with the rubrics (`pair`, written with care by a larger model) better than all; DPO (Rafailov et al.
2023, https://arxiv.org/abs/2305.18290; TRL) trains on the best beside the worst of a rubric. One passage of ten is
kept out: OUTPUT/<steps>/adapter is the writer after so many steps, and `benchmarks/writer.py --prompts` can compare
them on it.

A folder of prompts has a passage a line, with rubrics that were written for it (`wanted`) or with examples, whose forms
are learned already; both get rubrics of other forms that suit any passage (`tools/writer_rubrics.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from train_writer import EXAM_FORMS, MODULES, save_adapter
from writer_forms import FORMS
from writer_pairs import Outcome, Wish, by_product
from writer_wishes import is_kept_out, passages, wishes_of

from optimsyn.llm.embedded.writer import adapter_dir
from optimsyn.optimize.rounds.training import dpo_trainer
from optimsyn.programs.prompts.writer_prompts import pair_prompt, pair_reply
from optimsyn.recipe.sections.models import Lora, TargetSpec
from optimsyn.target.target import Target

KNOWN = Path(__file__).parents[1] / "benchmarks" / "results" / "writer_samples.jsonl"
SAMPLES = "samples.jsonl"
# Preferences of one rubric; no pair is in two of them.
MOST = 2
# A reader's grades: 0 wrong or without sense, 1 with a flaw, 2 right; and a pair that was written by hand.
UNREAD, PASSABLE, BY_HAND = 0, 1, 3


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of samples and adapters")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="folders of passages")
    parser.add_argument(
        "--start", type=Path, default=adapter_dir(), help="adapter to go on from; the shipped one writes"
    )
    parser.add_argument("--rubrics", type=int, default=4, help="of each passage; 0: no further pairs")
    parser.add_argument("--samples", type=int, default=1, help="pairs for each rubric")
    parser.add_argument("--known", type=Path, default=KNOWN, help="pairs that are there already, some with a grade")
    parser.add_argument("--only-samples", action="store_true", help="write pairs, and train nothing")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--save-steps", type=int, default=20, help="optimizer steps from one adapter to the next")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--beta", type=float, default=0.1, help="DPO's strength of staying near the start")
    parser.add_argument("--likelihood", type=float, default=0.5, help="weight of the better reply's cross-entropy")
    parser.add_argument("--batch-size", type=int, default=8, help="preferences in an optimizer step")
    parser.add_argument("--rows-per-pass", type=int, default=4, help="of a batch; fewer take less memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="rubrics, for a trial")
    args = parser.parse_args()
    if args.batch_size % min(args.rows_per_pass, args.batch_size):
        parser.error(f"--batch-size {args.batch_size} is no multiple of --rows-per-pass {args.rows_per_pass}")
    return args


def sampled(wishes: Sequence[Wish], known: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The known pairs, and those of the wishes that are missing: written to OUTPUT/samples.jsonl, and judged."""
    have = {key_of(row) for row in known}
    missing = [
        (wish, sample)
        for wish in wishes
        for sample in range(args.samples)
        if (wish.passage.id, wish.rubric.question_type, sample) not in have
    ]
    rows = list(known)
    if not missing:
        return rows
    with (args.output / SAMPLES).open("a", encoding="utf-8") as lines:

        def keep(number: int, each: Outcome) -> None:
            wish, sample = missing[number]
            row = {**each.row(), "asked": wish.rubric.question_type, "sample": sample}
            rows.append(row)
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()

        seeds = [
            int.from_bytes(hashlib.sha256(f"{args.seed} {n} {w.passage.id} {w.rubric}".encode()).digest()[:4], "big")
            for w, n in missing
        ]
        asyncio.run(by_product([wish for wish, _ in missing], seeds, keep=keep))
    return rows


def read(file: Path) -> list[dict[str, Any]]:
    """The samples of a file; none without it."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """What names a sample."""
    return row["passage_id"], row["asked"], row["sample"]


def rank(row: dict[str, Any]) -> int:
    """How good a pair is: -1 without the form that its rubric asks for, or invalid; otherwise its grade.

    A pair that nobody has read may be better than an invalid one, but is not good enough to learn from: five of six
    valid pairs of the first writer were wrong or without sense.
    """
    return -1 if row["failed"] or not row["obeys"] else row.get("grade", UNREAD)


def by_hand(passages_: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs that stand with the rubrics of passages, as samples; a larger model wrote them with care."""
    return [
        {
            "passage_id": row["id"],
            "asked": each["rubric"]["question_type"],
            "sample": -1,
            **each["pair"],
            "obeys": True,
            "failed": {},
            "grade": BY_HAND,
        }
        for row in passages_
        for each in row.get("wanted", ())
        if "pair" in each
    ]


def replies(rows: Sequence[dict[str, Any]], wishes: Sequence[Wish]) -> list[dict[str, Any]]:
    """The samples of these wishes with their prompt and reply, in the order of their prompts."""
    by_key = {(wish.passage.id, wish.rubric.question_type): wish for wish in wishes}
    result = []
    for row in sorted(rows, key=key_of):
        wish = by_key.get((row["passage_id"], row["asked"]))
        if wish is not None and row["question"]:
            text = pair_reply(row["quote"], row["question"], row["answer"], tuple(row["options"] or ()))
            # As it was asked: options only where the form of the exam is named.
            exam = EXAM_FORMS["options"] if wish.form == "options" else ""
            result.append({**row, "prompt": pair_prompt(wish.passage.text, wish.rubric, exam), "reply": text})
    return result


def preferences(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Prompt, the better reply and the worse one; `rows` are in the order of their prompts."""
    for prompt, group in groupby(rows, key=lambda row: row["prompt"]):
        ordered = sorted({row["reply"]: row for row in group}.values(), key=rank)
        for worse, better in list(zip(ordered, reversed(ordered), strict=True))[: min(MOST, len(ordered) // 2)]:
            if rank(better) >= PASSABLE and rank(better) > rank(worse):
                yield prompt, better["reply"], worse["reply"]


def train(chosen: Sequence[tuple[str, str, str]], args: argparse.Namespace) -> None:
    """DPO; writes OUTPUT/<steps>/adapter every `--save-steps`, and at the end."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig
    from trl.trainer.utils import use_adapter

    target = Target.load(TargetSpec(name="embedded", lora=Lora(r=16, alpha=32, target_modules=MODULES)), seed=args.seed)
    set_peft_model_state_dict(target.model, load_file(args.start / "adapter_model.safetensors"))
    tokenizer = target.tokenizer
    end = tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False).input_ids, end]

    rows = [
        {"prompt_ids": tokenizer(prompt).input_ids, "chosen_ids": ids(better), "rejected_ids": ids(worse)}
        for prompt, better, worse in chosen
    ]
    on_cpu = target.device.type == "cpu"
    passes = min(args.rows_per_pass, args.batch_size)
    settings = DPOConfig(
        output_dir=str(args.output / "trainer"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=passes,
        gradient_accumulation_steps=args.batch_size // passes,
        learning_rate=args.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        beta=args.beta,
        max_length=None,
        seed=args.seed,
        use_cpu=on_cpu,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=not on_cpu,
        save_strategy="no",
        logging_steps=5,
        report_to="none",
        disable_tqdm=True,
    )
    began = time.monotonic()

    class Keep(TrainerCallback):
        """Writes the adapter beside what is known of it."""

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % args.save_steps == 0 or state.global_step == state.max_steps:
                save(target, args, {"preferences": len(rows), "steps": state.global_step, "minutes": minutes()})

    def minutes() -> float:
        return round((time.monotonic() - began) / 60, 1)

    class WithLikelihood(dpo_trainer(on_cpu=True)):  # type: ignore[misc]
        """DPO beside the mean cross-entropy of the better reply's tokens, lest both replies become less likely.

        As in Pang et al. 2024 (https://arxiv.org/abs/2404.19733), equation 1.
        """

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with torch.no_grad(), use_adapter(self.model, "ref"):
                reference = self._log_likelihoods(inputs)
            own = self._log_likelihoods(inputs)
            better, worse = (own - reference).chunk(2)
            preferred = -torch.nn.functional.logsigmoid(self.beta * (better - worse)).mean()
            lengths = inputs["completion_mask"].sum(1)[: len(better)]
            return preferred + args.likelihood * (-own[: len(better)] / lengths).mean()

    trainer = WithLikelihood(
        model=target.model,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Keep()],
    )
    target.model.train()
    trainer.train()


def save(target: Target, args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Writes the adapter and what is known of it to OUTPUT/<steps>/adapter."""
    folder = args.output / str(facts["steps"]) / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(target, folder)
    before = json.loads((args.start / "writer.json").read_text(encoding="utf-8"))
    own = {
        key: value
        for key, value in vars(args).items()
        if key not in ("output", "prompts", "start", "known", "only_samples")
    }
    known = {key: value for key, value in before.items() if key != "held_out"}
    known["preferences"] = {
        **facts,
        "start": hashlib.sha256((args.start / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "settings": own,
    }
    (folder / "writer.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{folder}: {json.dumps(facts)}\n")
    sys.stdout.flush()


def main() -> None:
    """Writes pairs, and trains on which are better."""
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = [row for row in passages(args.prompts) if not is_kept_out(row)]
    random.Random(args.seed).shuffle(rows)
    all_wishes = [wish for row in rows for wish in wishes_of(row, len(FORMS), args.seed)]
    wishes = [wish for row in rows for wish in wishes_of(row, args.rubrics, args.seed)]
    # What is known may have been read since it was sampled here.
    known = {key_of(row): row for row in read(args.output / SAMPLES) + read(args.known)}
    own = sampled(wishes[: args.limit], list(known.values()), args)
    chosen = list(preferences(replies(own + by_hand(rows), all_wishes)))
    good = sum(row["obeys"] and not row["failed"] for row in own)
    sys.stdout.write(f"{good} of {len(own)} own pairs obey and are valid; {len(chosen)} preferences\n")
    if not args.only_samples:
        if not chosen:
            raise SystemExit("no rubric has both a good and a bad pair; raise --samples, or name further --prompts")
        random.Random(args.seed).shuffle(chosen)
        train(chosen, args)


if __name__ == "__main__":
    main()
