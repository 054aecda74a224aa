"""Replies and tokens a second of a local model, by rows in a batch; whole batches by `generate` against slots.

    python benchmarks/local_generation.py                              # the embedded model; GPU if there is one
    python benchmarks/local_generation.py --weights FOLDER --rows 64 256 512 --replies 1024
    python benchmarks/local_generation.py --adapter FOLDER             # a peft adapter merged into the weights
    python benchmarks/local_generation.py --random                     # the embedded model's shape, without its files

Prompts are pieces of this repository's pages (about 450 tokens), replies have 40 to 160 tokens. In one process, in
turns: `before` is the path of earlier versions (transformers' `generate` on whole batches, noise for the whole
vocabulary row by row), `slots` is `optimsyn.llm.local.batches`, `model` is the same asked by concurrent calls of a
LocalModel. "GPU busy" is the driver's share of time with at least one kernel running. Writes
benchmarks/results/local_generation.json and .md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from optimsyn.llm.local.batches import Batches, generate  # noqa: E402
from optimsyn.llm.local.rows import Row  # noqa: E402
from optimsyn.llm.local.sampling import truncated, uniforms  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
GUIDANCE = "Ask for one fact that the passage states, which a reader who knows the subject would want to remember."
STOP = ("\n\nPassage:",)
# About 450 tokens; of a random model, whose tokens are bytes, as many characters.
PASSAGE_CHARACTERS, PASSAGE_BYTES = 1700, 360


class EarlierSampling(LogitsProcessor):
    """Noise for the whole vocabulary, row by row, on the CPU."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.temperatures = [row.temperature for row in rows]
        self.generators = [torch.Generator().manual_seed(row.seed) for row in rows]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores whose arg max is the sample."""
        result = scores.float()
        for index, temperature in enumerate(self.temperatures):
            noise = torch.empty(result.shape[1]).exponential_(generator=self.generators[index])
            gumbel = -noise.clamp_min(1e-30).log().to(result.device)
            result[index] = truncated(result[index]) / temperature + gumbel
        return result


class EarlierLimits(StoppingCriteria):
    """Each row's tail decoded at every step."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, width: int) -> None:
        self.rows, self.tokenizer, self.width = rows, tokenizer, width

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Which rows have ended."""
        done = []
        for row, reply in zip(self.rows, input_ids[:, self.width :], strict=True):
            tail = self.tokenizer.decode(reply[-20:].tolist(), skip_special_tokens=True)
            done.append(len(reply) >= row.max_tokens or any(stop in tail for stop in row.stop))
        return torch.tensor(done, device=input_ids.device)


def earlier(model: Any, tokenizer: Any, rows: Sequence[Row], size: int) -> int:
    """Whole batches one after the other; the number of tokens."""
    tokens = 0
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        width, pad = max(len(row.ids) for row in batch), tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in batch], device=model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max(row.max_tokens for row in batch),
                    pad_token_id=pad,
                    eos_token_id=tokenizer.eos_token_id,
                ),
                logits_processor=LogitsProcessorList([EarlierSampling(batch)]),
                stopping_criteria=StoppingCriteriaList([EarlierLimits(batch, tokenizer, width)]),
            )
        tokens += int((output[:, width:] != pad).sum())
    return tokens


def by_slots(batches: Batches, rows: Sequence[Row]) -> int:
    """All rows through running batches; the number of tokens."""
    for index, row in enumerate(rows):
        batches.add(index, row)
    tokens = 0
    while batches.busy:
        tokens += sum(len(reply) for _, reply in batches.advance())
    return tokens


def by_model(folder: str, prompts: Sequence[str], rows: Sequence[Row], size: int) -> Callable[[], int] | None:
    """Concurrent calls of a LocalModel; None where optimsyn's own dependencies are missing."""
    try:
        from optimsyn.llm.language_model import Call
        from optimsyn.llm.local.model import LocalModel
        from optimsyn.recipe.recipe import ModelSpec
    except ImportError as error:
        print(f"without `model`: {error}")
        return None
    spec = ModelSpec(name=folder, concurrency=min(size, 512), max_tokens=400)
    model = LocalModel(spec)

    async def ask_all() -> int:
        calls = [
            Call.of(prompt, temperature=row.temperature, max_tokens=row.max_tokens, seed=row.seed, stop=row.stop)
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        return sum(reply.output_tokens for reply in await asyncio.gather(*map(model.complete, calls)))

    return lambda: asyncio.run(ask_all())


class Busy:
    """The mean of the driver's utilisation while it runs, in per cent; None on a CPU."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    def _utilization(self) -> float | None:
        try:
            return float(torch.cuda.utilization())
        except (ModuleNotFoundError, RuntimeError):
            command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
            try:
                return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])
            except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
                return None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Samples ten times a second."""
        self.samples.clear()
        if not torch.cuda.is_available():
            yield
            return
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.1):
                value = self._utilization()
                if value is not None:
                    self.samples.append(value)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @property
    def mean(self) -> float | None:
        """Of all samples but the first, which looks back before the start."""
        later = self.samples[1:]
        return sum(later) / len(later) if later else None


def prompts_of(count: int, characters: int = PASSAGE_CHARACTERS) -> list[str]:
    """Prompts of a writer about pieces of this repository's pages."""
    text = " ".join(
        " ".join(page.read_text(encoding="utf-8").split()) for page in sorted((ROOT / "docs").rglob("*.md"))
    )
    chance = random.Random(0)
    pieces = []
    for _ in range(count):
        length = int(characters * chance.uniform(0.6, 1.4))
        start = chance.randrange(len(text) - length)
        pieces.append(f"Passage: {text[start : start + length]}\nGuidance: {GUIDANCE}\nRubric:\n")
    return pieces


def load(weights: str | None, adapter: str | None, dtype: str) -> tuple[Any, Any, str]:
    """Model, tokenizer and folder."""
    if weights is None:
        from optimsyn.llm.embedded.server import weights_dir

        weights = str(weights_dir())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(weights)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=kind).to(device)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval(), tokenizer, weights


def random_model(folder: Path) -> str:
    """A folder with a model of the embedded one's shape, random weights, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512, query_pre_attn_scalar=256,
        max_position_embeddings=32768, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model: Any = Gemma3ForCausalLM(config)
    model.bfloat16().save_pretrained(folder)
    alphabet = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def timed(name: str, size: int, rows: Sequence[Row], run: Callable[[], int]) -> dict[str, Any]:
    """One measurement, printed as a line."""
    cuda = torch.cuda.is_available()
    busy = Busy()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    with busy.watch():
        start = time.perf_counter()
        tokens = run()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    result = {
        "path": name,
        "rows": size,
        "replies": len(rows),
        "seconds": round(seconds, 2),
        "replies_per_s": round(len(rows) / seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "gpu_busy_percent": None if busy.mean is None else round(busy.mean),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
    }
    print(json.dumps(result), flush=True)
    return result


def profiled(batches: Batches, rows: Sequence[Row], advances: int) -> None:
    """Prints where the GPU's time goes while a full batch runs."""
    from torch.profiler import ProfilerActivity, profile

    for index, row in enumerate(rows):
        batches.add(index, row)
    for _ in range(3):
        batches.advance()
    torch.cuda.synchronize()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(advances):
            batches.advance()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    averages = trace.key_averages()
    total = sum(event.self_device_time_total for event in averages) / 1e6
    print(f"{advances} turns in {seconds:.3f} s, kernels {total:.3f} s ({total / seconds:.0%})")
    for event in sorted(averages, key=lambda event: -event.self_device_time_total)[:15]:
        print(f"  {event.self_device_time_total / 1e3:8.1f} ms {event.count:6d} {event.key[:110]}")
    batches.clear()


def checks(model: Any, tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Whether noise is the same on CPU and device, and how many replies are the same in other batches."""
    seeds, steps, ids = torch.arange(64), torch.arange(64) * 3, torch.randint(262144, (64, 40))
    given = uniforms(seeds.to(model.device), steps.to(model.device), ids.to(model.device)).cpu()
    few = [Row(row.ids, row.temperature, min(row.max_tokens, 48), row.seed, row.stop) for row in rows]
    together = generate(model, tokenizer, few)
    again = generate(model, tokenizer, few, most_rows=max(1, len(few) // 4))
    result = {
        "noise_equals_cpu": bool(torch.equal(given, uniforms(seeds, steps, ids))),
        "same_replies_in_smaller_batches": sum(a == b for a, b in zip(together, again, strict=True)) / len(few),
        "example": together[0].text,
    }
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    """Measures, prints, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--weights", help="folder of a model; default: the embedded model")
    parser.add_argument("--random", action="store_true", help="random weights of the embedded model's shape")
    parser.add_argument("--adapter", help="folder of a peft adapter")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 128, 512] if cuda else [1, 8])
    parser.add_argument("--replies", type=int, default=2048 if cuda else 16, help="of `slots`")
    parser.add_argument("--replies-before", type=int, default=64 if cuda else 8, help="of `before`, which is slow")
    parser.add_argument("--tokens", type=int, nargs=2, default=(40, 160), help="shortest and longest reply")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("optimsyn").setLevel(logging.INFO)

    scratch = tempfile.TemporaryDirectory()
    if args.random:
        args.weights = random_model(Path(scratch.name))
    model, tokenizer, folder = load(args.weights, args.adapter, args.dtype)
    device = torch.cuda.get_device_name() if cuda else "CPU"
    print(device, torch.__version__, transformers.__version__, str(model.dtype), flush=True)
    prompts = prompts_of(args.replies, PASSAGE_BYTES if args.random else PASSAGE_CHARACTERS)
    chance = random.Random(1)
    rows = [
        Row(tokenizer(prompt).input_ids, 0.7, chance.randint(*args.tokens), chance.getrandbits(63), STOP)
        for prompt in prompts
    ]
    few = rows[: args.replies_before]
    # Before anything replaces the model's attention.
    earlier(model, tokenizer, few[:2], 2)
    results = [
        timed("before", size, few, partial(earlier, model, tokenizer, few, size))
        for size in sorted({min(size, len(few)) for size in args.rows})
    ]
    checked = checks(model, tokenizer, rows[: 64 if cuda else 4])
    for size in args.rows:
        batches = Batches(model, tokenizer, most_rows=size)
        results.append(timed("slots, first", size, rows[:size], partial(by_slots, batches, rows[:size])))
        results.append(timed("slots", size, rows, partial(by_slots, batches, rows)))
        if cuda and size == max(args.rows):
            profiled(batches, rows, 20)
    if args.adapter is None and (ask := by_model(folder, prompts, rows, max(args.rows))) is not None:
        results.append(timed("model, first", max(args.rows), rows, ask))
        results.append(timed("model", max(args.rows), rows, ask))
    if args.no_write:
        return
    RESULTS.mkdir(exist_ok=True)
    table = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
    table |= {"dtype": str(model.dtype), "random": args.random, "results": results, "checks": checked}
    (RESULTS / "local_generation.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "local_generation.md").write_text(markdown(table), encoding="utf-8")


def markdown(table: dict[str, Any]) -> str:
    """The results as a table."""
    lines = [
        f"{table['device']}, PyTorch {table['torch']}, transformers {table['transformers']}, {table['dtype']}.",
        "",
        "| path | rows | replies a second | tokens a second | GPU busy |",
        "|---|---:|---:|---:|---:|",
    ]
    for each in table["results"]:
        busy = "" if each["gpu_busy_percent"] is None else f"{each['gpu_busy_percent']} %"
        lines.append(f"| {each['path']} | {each['rows']} | {each['replies_per_s']} | {each['tokens_per_s']} | {busy} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
