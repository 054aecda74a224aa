"""Goes on with the writer: pairs written with care, beside its own worse ones under the same rubric.

    python tools/prefer_writer.py --output P --prompts benchmarks/writer_prompts benchmarks/writer_practice

It goes on from the adapter that ships (or `--start`). For each rubric of the prompts it writes several pairs, as a
run does (`PairWriter`, the model `embedded`), to OUTPUT/samples.jsonl; a function for each form and the built-in
checks judge them, and a `grade` says what a reader thought of some: 0 wrong or without sense, 1 with a flaw, 2 right.
Pairs with their rubric's form that pass the checks are better than others, of higher grade better than of lower, and
those that stand with the rubrics (`pair`, written with care by a larger model) better than all. It learns the best pair
of a rubric, beside the worst ones and beside itself with an answer to another question (odds ratios, Hong et al. 2024,
https://arxiv.org/abs/2403.07691), and again a part of the corpora. One passage of ten is kept out:
OUTPUT/<steps>/adapter is the writer after so many steps, and `benchmarks/writer.py --prompts` can compare them on it.

A folder of prompts has a passage a line, with rubrics that were written for it (`wanted`) or with examples, whose forms
are learned already; both get rubrics of other forms that suit any passage (`tools/writer_rubrics.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from shared_prefix import Sample, mean_log_probs, tree_of
from torch.optim.lr_scheduler import LambdaLR
from train_writer import EXAM_FORMS, MODULES, corpus_files, entries, samples, save_adapter
from writer_form_corpus import form_entries, form_samples, is_form_corpus
from writer_forms import FORMS
from writer_pairs import Outcome, Wish, by_product
from writer_wishes import is_kept_out, passages, wishes_of

from optimsyn.llm.embedded.writer import adapter_dir
from optimsyn.programs.prompts.writer_prompts import pair_prompt, pair_reply
from optimsyn.recipe.sections.models import Lora, TargetSpec
from optimsyn.target.target import Target

KNOWN = Path(__file__).parents[1] / "benchmarks" / "results" / "writer_samples.jsonl"
CORPORA = [Path(__file__).parents[1] / "benchmarks" / name for name in ("writer_languages", "writer_forms")]
SAMPLES = "samples.jsonl"
# Steps until the learning rate is reached; from then on it falls linearly to 0.
WARM_UP = 5
# Of a rubric's own pairs that are worse than its best.
MOST = 2
# Of `optimsyn.programs.prompts.writer_prompts`.
OPTIONS, ANSWER = "\nOptions: ", "\nAnswer: "
# A reader's grades: 0 wrong or without sense, 1 with a flaw, 2 right; and a pair that was written by hand.
UNREAD, PASSABLE, BY_HAND = 0, 1, 3


@dataclass(frozen=True)
class Lesson:
    """What there is to learn of one prompt.

    Attributes:
        passage_id: Its passage.
        prompt: What the writer is asked.
        better: The reply that it should write.
        worse: Replies that it should not.
    """

    passage_id: str
    prompt: str
    better: str
    worse: tuple[str, ...] = ()


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
    parser.add_argument("--repeat", type=int, default=40, help="passages of the learned corpora to learn again")
    parser.add_argument("--corpus", type=Path, nargs="*", default=CORPORA, help="those beside the bundled one")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument(
        "--save-steps", type=int, default=20, help="steps from one adapter to the next; the rate is 0 at the end"
    )
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--weight", type=float, default=0.5, help="of the odds ratios beside the likelihood")
    parser.add_argument("--batch-size", type=int, default=2, help="passages in an optimizer step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="rubrics, for a trial")
    return parser.parse_args()


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


def preferences(rows: Sequence[dict[str, Any]]) -> Iterator[Lesson]:
    """What there is to learn of each prompt with a good pair; `rows` are in the order of their prompts."""
    for prompt, group in groupby(rows, key=lambda row: row["prompt"]):
        ordered = list({row["reply"]: row for row in sorted(group, key=rank)}.values())
        better = ordered[-1]
        if rank(better) >= PASSABLE:
            worse = [row["reply"] for row in ordered[:MOST] if rank(row) < rank(better)]
            yield Lesson(better["passage_id"], prompt, better["reply"], tuple(worse))


def with_other_answers(lessons: Sequence[Lesson]) -> Iterator[Lesson]:
    """Beside each lesson's worse replies the better one with the answer of another of its passage.

    So a right answer differs from a wrong one in nothing but what was asked. Options name their answer, and a lesson
    whose other answers all say the same is left as it is.
    """
    for _, group in groupby(lessons, key=lambda lesson: lesson.passage_id):
        passage = list(group)
        answers = [lesson.better.rpartition(ANSWER)[2] for lesson in passage]
        for number, lesson in enumerate(passage):
            head, _, own = lesson.better.rpartition(ANSWER)
            others = [answer for answer in answers[number + 1 :] + answers[:number] if answer != own]
            swapped = (head + ANSWER + others[0],) if others and OPTIONS not in head else ()
            yield replace(lesson, worse=lesson.worse + swapped)


def repeated(folders: Sequence[Path], count: int, seed: int) -> list[list[dict[str, str]]]:
    """Samples of so many passages by chance of the corpora that the writer has learned, lest it forget them."""
    draw = random.Random(seed)
    files = corpus_files(list(folders))
    of_forms = [file for file in files if is_form_corpus(file)]
    rows = [
        [row for example in entry.examples for row in samples(entry, example, "lines", draw)]
        for entry in entries([file for file in files if file not in of_forms])
    ]
    rows += [form_samples(entry, "lines") for entry in form_entries(of_forms)]
    return draw.sample(rows, min(count, len(rows)))


def loss_of(log_probs: torch.Tensor, better: Sequence[int], worse: Sequence[Sequence[int]], weight: float) -> Any:
    """The better replies' negative log-likelihood, and how often a worse one is as likely.

    Odds-ratio preference optimisation (Hong et al. 2024, https://arxiv.org/abs/2403.07691, equations 6 and 7): without
    a second model, and what the writer would hardly write teaches next to nothing.

    Args:
        log_probs: Mean log-probabilities of samples' reply tokens, [samples].
        better: Which samples are to be learned.
        worse: For each of them the samples that are worse than it.
        weight: Of the odds ratios.
    """
    likely = -log_probs[list(better)]
    odds = log_probs - torch.log1p(-torch.exp(log_probs.clamp(max=-1e-6)))
    ratios = [
        -torch.nn.functional.logsigmoid(odds[one] - odds[list(others)]).mean()
        for one, others in zip(better, worse, strict=True)
        if others
    ]
    return likely.sum() + weight * torch.stack(ratios).sum() if ratios else likely.sum()


def train(lessons: Sequence[Lesson], further: Sequence[Sequence[dict[str, str]]], args: argparse.Namespace) -> None:
    """Trains a passage at a time; writes OUTPUT/<steps>/adapter every `--save-steps` steps, and at the end."""
    target = Target.load(TargetSpec(name="embedded", lora=Lora(r=16, alpha=32, target_modules=MODULES)), seed=args.seed)
    set_peft_model_state_dict(target.model, load_file(args.start / "adapter_model.safetensors"))
    tokenizer = target.tokenizer

    def sample(prompt: str, reply: str) -> Sample:
        completion = tokenizer(reply, add_special_tokens=False).input_ids
        return tokenizer(prompt).input_ids, [*completion, tokenizer.eos_token_id]

    work = []
    for _, group in groupby(lessons, key=lambda lesson: lesson.passage_id):
        rows: list[Sample] = []
        better, worse = [], []
        for lesson in group:
            better.append(len(rows))
            worse.append(range(len(rows) + 1, len(rows) + 1 + len(lesson.worse)))
            rows += [sample(lesson.prompt, reply) for reply in (lesson.better, *lesson.worse)]
        work.append((rows, better, worse))
    for each in further:
        rows = [sample(row["prompt"], row["completion"]) for row in each]
        work.append((rows, range(len(rows)), [()] * len(rows)))
    weights = [p for p in target.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, weight_decay=0.0)
    total = math.ceil(len(work) * args.epochs / args.batch_size)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / WARM_UP, (total - step) / max(1, total - WARM_UP)))
    draw = random.Random(args.seed)
    order = [one for _ in range(math.ceil(args.epochs)) for one in draw.sample(work, len(work))]
    began = time.monotonic()
    target.model.train()
    for step in range(total):
        batch = order[step * args.batch_size : (step + 1) * args.batch_size]
        learned = sum(len(better) for _, better, _ in batch)
        mean = 0.0
        for rows, better, worse in batch:
            loss = loss_of(mean_log_probs(target.causal, tree_of(rows)), better, worse, args.weight) / learned
            loss.backward()
            mean += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        minutes = round((time.monotonic() - began) / 60, 1)
        sys.stdout.write(f"step {step + 1} of {total}: loss {mean:.3f}, {minutes} minutes\n")
        sys.stdout.flush()
        if (step + 1) % args.save_steps == 0 or step + 1 == total:
            facts = {"lessons": len(lessons), "repeated": len(further), "steps": step + 1, "minutes": minutes}
            save(target, args, facts)


def save(target: Target, args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Writes the adapter and what is known of it to OUTPUT/<steps>/adapter."""
    folder = args.output / str(facts["steps"]) / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(target, folder)
    before = json.loads((args.start / "writer.json").read_text(encoding="utf-8"))
    own = {
        key: value
        for key, value in vars(args).items()
        if key not in ("output", "prompts", "corpus", "start", "known", "only_samples")
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
    """Writes pairs, and trains on the good ones beside the worse."""
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = [row for row in passages(args.prompts) if not is_kept_out(row)]
    random.Random(args.seed).shuffle(rows)
    all_wishes = [wish for row in rows for wish in wishes_of(row, len(FORMS), args.seed)]
    wishes = [wish for row in rows for wish in wishes_of(row, args.rubrics, args.seed)]
    # What is known may have been read since it was sampled here.
    known = {key_of(row): row for row in read(args.output / SAMPLES) + read(args.known)}
    own = sampled(wishes[: args.limit], list(known.values()), args)
    lessons = list(with_other_answers(list(preferences(replies(own + by_hand(rows), all_wishes)))))
    good = sum(row["obeys"] and not row["failed"] for row in own)
    worse = sum(len(lesson.worse) for lesson in lessons)
    sys.stdout.write(
        f"{good} of {len(own)} own pairs obey and are valid; {len(lessons)} lessons, {worse} worse pairs\n"
    )
    if not args.only_samples:
        if not lessons:
            raise SystemExit("no rubric has a good pair; name --prompts with pairs, or --known with grades")
        train(lessons, repeated(args.corpus, args.repeat, args.seed), args)


if __name__ == "__main__":
    main()
