"""The gradient store at work: 20,000 short samples in flat memory, kill -9 and resume, a question set without model.

    python benchmarks/store.py                    # some minutes on one core; needs no network and no weights

The model is a random LLaMA of two layers with a byte tokeniser, built here; figures of time are therefore of the
machinery, not of a real model. Prints tables and writes benchmarks/results/store.json and store.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "store.json"
WORDS = "river stone copper battle senate comet enzyme harvest treaty violin glacier market prism saddle orchid".split()


def text_samples(count: int, seed: int, subtasks: tuple[str, ...] = ("",)) -> Iterator[Any]:
    """Short invented questions, one at a time, so that the pool never exists as a whole."""
    from optimsyn.data.records import Sample

    for i in range(count):
        own = random.Random(f"{seed}/{i}")
        body = f"Which {own.choice(WORDS)} met the {own.choice(WORDS)} in {own.randint(1100, 1999)}?"
        answer = " ".join(own.choices(WORDS, k=own.randint(1, 3)))
        messages = ({"role": "user", "content": body}, {"role": "assistant", "content": answer})
        yield Sample(
            id=f"{seed}-{i}",
            prompt=f"Question: {body}\nAnswer:",
            completion=f" {answer}",
            messages=messages,
            subtask=subtasks[i % len(subtasks)],
        )


def make_target(seed: int) -> Any:
    """A random LLaMA (64 units, 2 layers, LoRA r=4 on every linear layer but the gate), warmed up for eight steps."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from optimsyn.recipe.recipe import Lora
    from optimsyn.target.target import Target

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={"</s>": 0, **{c: i + 1 for i, c in enumerate(letters)}}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")  # noqa: S106
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    lora = Lora(r=4, alpha=8, target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    target = Target.from_model(model, fast, lora=lora, max_length=200, seed=seed)
    target.warm_up(list(text_samples(64, seed + 1)), steps=8, batch_size=8, lr=3e-3, seed=seed)
    return target


def child_add(arguments: argparse.Namespace) -> None:
    """Adds the pool; prints rows and resident memory as it goes."""
    import psutil
    import torch

    from optimsyn.influence.gradients.projection import Projection
    from optimsyn.influence.store.store import GradientStore

    torch.set_num_threads(1)
    target = make_target(arguments.seed)
    store = GradientStore.open_or_create(
        arguments.folder / "pool", target, projection=Projection(arguments.size, arguments.size)
    )
    process, began = psutil.Process(), time.perf_counter()
    already, mark = len(store), len(store)

    def watched() -> Iterator[Any]:
        nonlocal mark
        for sample in text_samples(arguments.rows, arguments.seed + 10):
            if len(store) >= mark:
                resident = process.memory_info().rss / 2**20
                report({"rows": len(store), "rss_mib": round(resident, 1)})
                mark += arguments.rows // 10
            yield sample

    new = store.add(watched(), batch_tokens=4096)
    seconds = time.perf_counter() - began
    report({"rows": len(store), "rss_mib": round(process.memory_info().rss / 2**20, 1)})
    report({"done": True, "before": already, "new": new, "seconds": round(seconds, 1), "bytes": store.size()})


def child_ask(arguments: argparse.Namespace) -> None:
    """Scores the whole pool by a stored question set; no model, no transformers."""
    from optimsyn.influence.store.store import GradientStore, QuestionStore

    began = time.perf_counter()
    pool = GradientStore.open(arguments.folder / "pool")
    scores = pool.score(QuestionStore.open(arguments.folder / arguments.questions), normalization="cosine")
    loaded = sorted({"transformers", "peft", "tokenizers"} & set(sys.modules))
    assert not loaded, f"the model's libraries were loaded: {loaded}"
    best = scores.ids[int(scores.total.argmax())]
    report({"scored": len(scores), "seconds": round(time.perf_counter() - began, 2), "best": best, "loaded": loaded})


def report(row: dict[str, Any]) -> None:
    """One JSON line to the parent."""
    print(json.dumps(row), flush=True)


def start(arguments: argparse.Namespace, child: str, *more: str) -> subprocess.Popen[str]:
    """Starts this file as a child process."""
    options = ["--seed", str(arguments.seed), "--rows", str(arguments.rows), "--size", str(arguments.size)]
    command = [sys.executable, __file__, *options, "--child", child, "--folder", str(arguments.folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def fill(arguments: argparse.Namespace, kill_at: int | None) -> list[dict[str, Any]]:
    """Runs `child_add`; with `kill_at`, kills it with SIGKILL once that many rows are there."""
    process, rows = start(arguments, "add"), []
    assert process.stdout is not None
    for line in process.stdout:
        row = json.loads(line)
        rows.append(row)
        if "rss_mib" in row:
            print(f"  {row['rows']:>7,}  {row['rss_mib']:>8.1f}")
        if kill_at is not None and row.get("rows", 0) >= kill_at:
            time.sleep(0.25)  # Into the middle of a window.
            process.kill()
            break
    process.stdout.read()
    code = process.wait()
    if kill_at is None and code:
        raise SystemExit(f"the child ended with code {code}")
    return rows


def fidelity(arguments: argparse.Namespace, target: Any, count: int = 256) -> list[dict[str, Any]]:
    """Spearman of store scores with the exact ones over samples of the pool, for several sizes of projection."""
    from scipy.stats import spearmanr

    from optimsyn.influence.gradients.projection import Projection
    from optimsyn.influence.scorer import InfluenceScorer
    from optimsyn.influence.store.store import GradientStore, QuestionStore

    asked = list(text_samples(16, arguments.seed + 20, ("a", "b")))
    pool = list(text_samples(count, arguments.seed + 10))
    names = [sample.id for sample in pool]
    exact = {kind: InfluenceScorer(target, asked, normalization=kind).score(pool).total for kind in ("cosine", "dot")}
    rows = []
    for size in sorted({8, 16, 32, arguments.size}):
        folder = arguments.folder / f"size-{size}"
        projection = Projection(size, size)
        store = GradientStore.open_or_create(folder / "pool", target, projection=projection)
        store.add(pool)
        questions = QuestionStore.open_or_create(folder / "asked", target, projection=projection)
        questions.add(asked)
        row: dict[str, Any] = {"size": size, "width": store.manifest["width"], "samples": count}
        for kind, truth in exact.items():
            scores = store.score(questions, normalization=kind, ids=names).total  # type: ignore[arg-type]
            row[kind] = round(float(spearmanr(scores.numpy(), truth.numpy()).statistic), 4)
            row[f"{kind}_error"] = round(float((scores - truth).square().mean().sqrt() / truth.std()), 4)
        rows.append(row)
    return rows


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown for the docs."""
    steps = [*result.get("killed", {}).get("memory", []), *result["resumed"]["memory"]]
    sizes = "; ".join(
        f"{row['width']:,} of {result['parameters']:,} values: {row['cosine']:.2f} cosine, {row['dot']:.2f} dot"
        for row in result["fidelity"]
    )
    rows = [f"{result['rows']:,} short samples on a tiny random model ({result['hardware']}), killed half-way:", ""]
    rows += ["| rows | resident memory, MiB |", "|---:|---:|"]
    rows += [f"| {step['rows']:,} | {step['rss_mib']:.0f} |" for step in steps]
    second = result["second_question_set"]
    rows += [
        "",
        f"Lost {result['lost']}, doubled {result['doubled']}. {result['bytes_per_sample']:,.0f} bytes a sample. "
        f"A second question set: {second['scored']:,} scores in {second['seconds']} s, without loading a model. "
        "Spearman with the exact scores: "
        f"{sizes}. The gradients of a random model are nearly orthogonal, which is the hardest case for a "
        "projection; measure on your own target before you trust a small one.",
    ]
    return "\n".join(rows) + "\n"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="samples in the pool")
    parser.add_argument("--size", type=int, default=32, help="values kept of each side of a gradient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-kill", action="store_true", help="fill the store in one go")
    parser.add_argument("--no-write", action="store_true", help=f"leave {RESULT.name} alone")
    parser.add_argument("--child", choices=("add", "ask"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--questions", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Runs all parts in order."""
    import torch

    from optimsyn.influence.gradients.projection import Projection
    from optimsyn.influence.store.store import GradientStore, QuestionStore

    arguments = options()
    if arguments.child:
        {"add": child_add, "ask": child_ask}[arguments.child](arguments)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        arguments.folder = Path(temporary)
        result: dict[str, Any] = {"rows": arguments.rows, "seed": arguments.seed, "size": arguments.size}
        print(f"{arguments.rows:,} samples into the store\n     rows   RSS MiB")
        killed = []
        if not arguments.no_kill:
            killed = fill(arguments, arguments.rows // 2)
            kept = len(GradientStore.open(arguments.folder / "pool"))
            print(f"  kill -9 with {kept:,} rows in the index; again:")
            result["killed"] = {"memory": killed, "rows_kept": kept}
        resumed = fill(arguments, None)
        done = resumed.pop()
        result["resumed"] = {"memory": resumed, **done}
        store = GradientStore.open(arguments.folder / "pool")
        lost = {f"{arguments.seed + 10}-{i}" for i in range(arguments.rows)} ^ set(store.ids)
        lines = sum(1 for line in (store.folder / "index.jsonl").read_bytes().splitlines() if line.endswith(b"}"))
        result["lost"], result["doubled"] = len(lost), lines - len(set(store.ids))
        assert not lost, sorted(lost)[:5]
        assert lines == arguments.rows, lines
        assert not killed or done["before"] == result["killed"]["rows_kept"]
        print(f"rows {len(store):,}, lost 0, doubled 0; {done['new']:,} samples in {done['seconds']} s after the kill")
        width = store.manifest["width"]
        result["bytes_per_sample"] = round(store.size() / len(store), 1)
        result["width"] = width
        print(
            f"on disk {store.size() / 2**20:.1f} MiB, {result['bytes_per_sample']:.0f} bytes a sample, {width} values"
        )

        target = make_target(arguments.seed)
        result["parameters"] = sum(parameter.numel() for parameter in target.parameters.values())
        for name, seed, subtasks in (("first", 20, ("a", "b")), ("second", 30, ("x", "y", "z"))):
            projection = Projection(arguments.size, arguments.size)
            asked = QuestionStore.open_or_create(arguments.folder / name, target, projection=projection)
            asked.add(text_samples(16, arguments.seed + seed, subtasks))
            answer, _ = start(arguments, "ask", "--questions", name).communicate()
            result[f"{name}_question_set"] = json.loads(answer)
            print(f"{name} question set, without the model's libraries: {answer.strip()}")
        print(f"Spearman with exact scores, {result['parameters']:,} trained parameters")
        print("  size  values  cosine     dot   rms error / spread of scores (cosine, dot)")
        result["fidelity"] = fidelity(arguments, target)
        for row in result["fidelity"]:
            print(
                f"  {row['size']:>4}  {row['width']:>6}  {row['cosine']:.4f}  {row['dot']:.4f}   "
                f"{row['cosine_error']:.3f}, {row['dot_error']:.3f}"
            )
    if not arguments.no_write:
        write(result)


def write(result: dict[str, Any]) -> None:
    """Writes the figures, with the versions and the machine."""
    result["versions"] = {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    result["versions"]["python"] = platform.python_version()
    result["hardware"] = f"{os.cpu_count()} CPU cores, one thread"
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    RESULT.with_suffix(".md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
