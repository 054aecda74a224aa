"""The modes that `influence_speed.py` runs in turns: models, samples, and one call per mode."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speed_less import LessLoop
from speed_memory import Measured, measured

from optimsyn.data.records import Sample
from optimsyn.influence.accuracy import percent
from optimsyn.influence.derivative.forward import ForwardScorer
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.llm.local.loading import resolve_device, resolve_dtype
from optimsyn.recipe.recipe import CountedTokens, Lora, TargetSpec
from optimsyn.target.encoding import IGNORE, Encoded, counted
from optimsyn.target.target import Target

_QWEN3_8B = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


class FixedTarget(Target):
    """A target that also takes samples with given tokens, so that lengths are exact."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.given: dict[str, Encoded] = {}

    def encode(self, sample: Any) -> Encoded:
        """The given tokens of the sample's id, else those of the tokenizer."""
        return self.given.get(sample.id) or super().encode(sample)

    def random_samples(self, count: int, length: int, *, answer: float, seed: int) -> list[Sample]:
        """Samples of `length` random tokens; the last share `answer` of them are labels."""
        generator = torch.Generator().manual_seed(seed)
        size = int(self.causal.config.get_text_config().vocab_size)
        samples = []
        for i in range(count):
            ids = torch.randint(size, (length,), generator=generator).tolist()
            first = min(length - 1, max(1, round(length * (1 - answer))))
            name = f"random-{seed}-{length}-{i}"
            self.given[name] = Encoded(name, ids, [IGNORE] * first + ids[first:], False)
            samples.append(Sample(id=name, prompt="given", completion=" tokens", messages=()))
        return samples


def pairs_of(target: Target, samples: Sequence[Sample]) -> list[Encoded]:
    """Tokenised samples with the labels that a scorer uses, so that every mode has the same work."""
    return [counted(target.encode(sample), CountedTokens(), "pair") for sample in samples]


def load_target(args: Any) -> FixedTarget:
    """The embedded model (or another by name), or a random one of Qwen3-8B's shape."""
    if args.model != "qwen3-8b-shape":
        spec = TargetSpec(
            name=args.model, device=args.device, dtype=args.dtype, lora=Lora(r=args.lora_r or 8, alpha=16)
        )
        target = FixedTarget.load(spec, seed=args.seed)
        assert isinstance(target, FixedTarget)
        return target
    from transformers import Qwen3Config, Qwen3ForCausalLM

    device = resolve_device(args.device)
    dtype = resolve_dtype("bfloat16" if args.dtype == "auto" else args.dtype, device)

    def scaled(key: str, least: int) -> int:
        return max(least, int(_QWEN3_8B[key] * args.scale) // least * least)

    config = Qwen3Config(
        vocab_size=scaled("vocab_size", 64),
        hidden_size=scaled("hidden_size", 64),
        intermediate_size=scaled("intermediate_size", 64),
        num_hidden_layers=scaled("num_hidden_layers", 2),
        num_attention_heads=scaled("num_attention_heads", 4),
        num_key_value_heads=scaled("num_key_value_heads", 2),
        head_dim=128 if args.scale == 1 else 32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    torch.manual_seed(args.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    rank = args.lora_r or max(4, int(128 * args.scale))
    tokenizer = _bytes()
    target = FixedTarget.from_model(
        model, tokenizer, lora=Lora(r=rank, alpha=2 * rank), max_length=4096, seed=args.seed
    )
    assert isinstance(target, FixedTarget)
    return target


def _bytes() -> Any:
    """A tokenizer of single bytes: samples are already tokens, but a scorer's identity needs a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={"<end>": 0} | {letter: i + 1 for i, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict.fromkeys(("eos_token", "pad_token"), "<end>"))


@dataclass(frozen=True)
class Mode:
    """One way to do the work.

    Attributes:
        name: In the table.
        run: Processes the samples once and measures it.
        note: Its particular settings.
    """

    name: str
    run: Callable[[Sequence[Sample]], tuple[Any, Measured]]
    note: str = ""


def modes_of(  # noqa: PLR0913 - all but two are keyword-only
    target: FixedTarget,
    questions: Sequence[Sample],
    *,
    batch_tokens: int,
    names: Sequence[str],
    seed: int,
    folder: Path,
    less_seconds: float | None = None,
) -> list[Mode]:
    """Sets up the modes of this process; validation directions are computed once, outside of all timing."""
    device = target.device
    modes: list[Mode] = []

    def add(name: str, work: Callable[[Sequence[Sample]], Any], note: str = "") -> None:
        modes.append(Mode(name, lambda samples: measured(lambda: work(samples), device), note))

    def floor(samples: Sequence[Sample]) -> None:
        for batch in target.batches(pairs_of(target, samples), batch_tokens):
            target.losses(batch).sum().backward()  # type: ignore[no-untyped-call]
            for parameter in target.parameters.values():
                parameter.grad = None

    def scorer(estimator: str, normalization: Any) -> InfluenceScorer:
        return InfluenceScorer(
            target,
            questions,
            estimator=estimator,
            normalization=normalization,
            batch_tokens=batch_tokens,
            folder=folder,
        )

    if "floor" in names:
        add("floor", floor, "forward and backward of the same batches")
    if "exact" in names:
        add("exact", scorer("adam_momentum_free", "dot").score, "adam_momentum_free, dot")
    if "exact-cosine" in names:
        add("exact-cosine", scorer("adam", "cosine").score, "adam, cosine")
    if "twin" in names:
        twin = TwinScorer(
            target, questions, sides="central", batch_tokens=batch_tokens, folder=folder, most_error=math.inf
        )
        add("twin", twin.score, f"adam_linear, central, 1 subtask; error {percent(twin.numerical_error)}")
    if "forward" in names:
        forward = ForwardScorer(target, questions, batch_tokens=batch_tokens, folder=folder, most_error=math.inf)
        add("forward", forward.score, f"adam_linear, 1 subtask; error {percent(forward.numerical_error)}")
    if "linear" in names:
        linear = scorer("adam_linear", "dot")
        add(
            "linear", linear.score, f"adam_linear, dot: what twin approximates; error {percent(linear.numerical_error)}"
        )
    for name in ("less", "less-labels"):
        if name in names:
            loop = LessLoop(target, target.checkpoints[-1], label_logits=name == "less-labels", seed=seed)
            logits = "logits at labels" if loop.label_logits else "all logits"
            modes.append(Mode(name, partial(_less, loop, less_seconds), f"batch 1, {logits}"))
    return modes


def _less(loop: LessLoop, seconds: float | None, samples: Sequence[Sample]) -> tuple[Any, Measured]:
    """The whole loop, or an estimate from a part of it if it takes longer than `seconds`."""
    encoded, device = pairs_of(loop.target, samples), loop.target.device
    if seconds is not None:
        probe, taken = measured(lambda: loop.within(encoded, seconds), device)
        if probe.whole > seconds:
            part = f"from {probe.samples} of {len(encoded)} samples, {100 * probe.columns:.0f} % of a projection"
            cpu = taken.cpu_seconds * probe.whole / probe.spent
            return None, replace(taken, seconds=probe.whole, cpu_seconds=cpu, part=part)
    return measured(lambda: loop.run(encoded), device)


class Bergson:
    """bergson in a separate process, with its own copy of the model; answers are requested one at a time.

    Args:
        python: An interpreter that has bergson.
        target: The base model and adapter to load.
        samples: The pool.
        batch_tokens: As for the other modes.
        model: The benchmark's `--model`.
        threads: For torch.
        folder: For files that both read.

    Raises:
        RuntimeError: It does not start; the message is the last line it printed.
    """

    def __init__(  # noqa: PLR0913 - all but three are keyword-only
        self,
        python: str,
        target: FixedTarget,
        samples: Sequence[Sample],
        *,
        batch_tokens: int,
        model: str,
        threads: int,
        folder: Path,
    ) -> None:
        encoded = pairs_of(target, samples)
        weights = None
        random = model == "qwen3-8b-shape"
        if model == "embedded":
            from optimsyn.llm.embedded.server import weights_dir

            weights = str(weights_dir())
        elif not random:
            weights = model
        target.causal.config.save_pretrained(folder / "config")
        lora = next(iter(target.model.peft_config.values()))
        if not random:
            target.model.save_pretrained(folder / "adapter")
        facts: dict[str, Any] = {
            "weights": weights,
            "config": str(folder / "config"),
            "adapter": None if random else str(folder / "adapter"),
            "lora": {"r": lora.r, "lora_alpha": lora.lora_alpha, "target_modules": sorted(lora.target_modules)},
            "dtype": str(next(target.causal.base_model.parameters()).dtype).removeprefix("torch."),
            "device": str(target.device),
            "threads": threads,
            "input_ids": [item.input_ids for item in encoded],
            "labels": [item.labels for item in encoded],
            "batches": [batch.indices for batch in target.batches(encoded, batch_tokens)],
        }
        self._batches = len(facts["batches"])
        file = folder / "pool.json"
        file.write_text(json.dumps(facts), encoding="utf-8")
        self._log = folder / "bergson.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name("speed_bergson.py")), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.version: str = self._answer()["bergson"]

    def mode(self) -> Mode:
        """Its mode; it always scores its own pool and ignores the samples of a call."""
        batches = f"{self._batches} batches, all logits, own process"
        return Mode("bergson", self._run, f"bergson {self.version}, dot, no projection, {batches}")

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _run(self, _: Sequence[Sample]) -> tuple[None, Measured]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        taken = self._answer()
        return None, Measured(taken["seconds"], taken["cpu_seconds"], 0, taken["peak"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            raise RuntimeError(lines[-1])
        answer: dict[str, Any] = json.loads(line)
        return answer
