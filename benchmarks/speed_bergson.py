"""bergson on the benchmark's own token ids: run by `influence_speed.py --bergson PYTHON` with that interpreter.

It imports nothing of optimsyn. For every line of standard input it scores the whole pool once and prints a line of
JSON. Scores are dot products of unprojected per-sample gradients of the adapter with one query vector, computed as the
gradients arrive, which is closest to optimsyn's work; bergson computes the logits of every position.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


def load(facts: dict[str, Any]) -> Any:
    """The model with its adapter."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, facts["dtype"])
    if facts["weights"]:
        model = AutoModelForCausalLM.from_pretrained(facts["weights"], dtype=dtype).to(facts["device"])
    else:
        with torch.device(facts["device"]):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(facts["config"]), dtype=dtype)
    if facts["adapter"]:
        model = PeftModel.from_pretrained(model, facts["adapter"], is_trainable=True)
    else:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **facts["lora"]))
    return model.eval()


class Pool:
    """The samples to score repeatedly."""

    def __init__(self, facts: dict[str, Any], folder: Path) -> None:
        from bergson import GradientProcessor, IndexConfig, InMemoryCollector, Scorer
        from bergson.collector.collector import CollectorComputer
        from bergson.score.score_writer import InMemorySequenceScoreWriter
        from bergson.utils.peft import detect_peft_modules
        from datasets import Dataset

        torch.set_num_threads(facts["threads"])
        self._computer, self._collector = CollectorComputer, InMemoryCollector
        self._scorer, self._writer = Scorer, InMemorySequenceScoreWriter
        self.model = load(facts)
        self.device = torch.device(facts["device"])
        self.data = Dataset.from_dict({key: facts[key] for key in ("input_ids", "labels")})
        self.batches = facts["batches"]
        self.config = IndexConfig(run_path=str(folder / "run"), loss_reduction="mean")
        self.config.partial_run_path.mkdir(parents=True, exist_ok=True)
        self.processor = GradientProcessor()
        self.modules = sorted(detect_peft_modules(self.model))
        self.query = {
            name: torch.randn(1, self.model.base_model.get_submodule(name).weight.numel()) for name in self.modules
        }

    def score(self) -> list[float]:
        """One pass over the pool."""
        scorer = self._scorer(self.query, self.modules, self._writer(len(self.data), 1), self.device, torch.float32)
        collector = self._collector(
            model=self.model.base_model,
            cfg=self.config,
            processor=self.processor,
            target_modules=set(self.modules),
            data=self.data,
            scorer=scorer,
        )
        computer = self._computer(self.model, self.data, collector=collector, batches=self.batches, cfg=self.config)
        computer.run_with_collector_hooks()
        scores: list[float] = torch.as_tensor(scorer.writer.scores).flatten().tolist()
        return scores


def main() -> None:
    """Reads the pool's file, then answers line by line until the input ends."""
    from importlib.metadata import version

    # bergson prints progress to standard output, which must not mix with the answers.
    answers = sys.stdout
    sys.stdout = sys.stderr
    facts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(facts, Path(folder))
        pool.score()
        print(json.dumps({"bergson": version("bergson")}), file=answers, flush=True)
        for _ in sys.stdin:
            cuda = pool.device.type == "cuda"
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began, cpu = time.perf_counter(), time.process_time()
            pool.score()
            if cuda:
                torch.cuda.synchronize()
            taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
            peak = torch.cuda.max_memory_allocated() if cuda else None
            print(json.dumps({**taken, "peak": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
