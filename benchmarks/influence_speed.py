"""How fast is influence? All modes in one run, in turns, on the same model, samples and machine.

    python benchmarks/influence_speed.py --pool DATA/medicine/validation.jsonl         # lengths as in a pool
    python benchmarks/influence_speed.py --batch 1 8 32 --length 64 256 1024           # a grid
    python benchmarks/influence_speed.py --model qwen3-8b-shape --device cuda --batch 8 --length 512 1024
    python benchmarks/influence_speed.py --model qwen3-8b-shape --scale 0.05 --batch 8 --length 64   # in small

Modes: floor (plain forward and backward of the same batches, logits at label positions), exact (`InfluenceScorer`),
exact-cosine, twin (`TwinScorer`), forward (`ForwardScorer`), linear (the exact scores that these two approximate), less
(a per-sample loop with an 8,192-wide projection as in LESS; if it takes longer than --less-seconds, times are
extrapolated from a part of it and marked), less-labels (the same with logits at label positions), and bergson, if
--bergson names an interpreter that has it (`python -m venv B && B/bin/pip install bergson`). Ratios are to the floor of
the same repeat; the order of the modes rotates between repeats. Memory is the process's peak resident size, on CUDA the
peak of allocated tensors.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from speed_memory import Measured
from speed_modes import Bergson, FixedTarget, Mode, load_target, modes_of, pairs_of

from optimsyn.base.errors import ModelError
from optimsyn.base.files import iter_json, write_json, write_text
from optimsyn.data.chat import sample_of
from optimsyn.data.records import Question, Sample

RESULTS = Path(__file__).parent / "results"
MODES = ("floor", "exact", "exact-cosine", "twin", "forward", "linear", "less", "less-labels")
MIB = 2**20


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, qwen3-8b-shape (random weights), or a name")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks qwen3-8b-shape, to try it")
    parser.add_argument("--lora-r", type=int, default=None, help="8; of qwen3-8b-shape 128")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 on a GPU, and always for qwen3-8b-shape")
    parser.add_argument("--less-seconds", type=float, default=60, help="longest time for the LESS loop, per repeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pool", type=Path, default=None, help="JSON lines of questions; replaces the grid")
    parser.add_argument("--max-tokens", type=int, default=256, help="longer questions of the pool are left out")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of a pool's batches")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="samples per batch of the grid")
    parser.add_argument("--length", type=int, nargs="+", default=[64, 256, 1024], help="tokens per sample of the grid")
    parser.add_argument("--answer", type=float, default=0.25, help="share of a sample's tokens that are labels")
    parser.add_argument("--samples", type=int, default=None, help="per cell; default 32, in a grid 16 or one batch")
    parser.add_argument("--questions", type=int, default=8, help="validation questions")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--bergson", default=None, metavar="PYTHON", help="an interpreter that has bergson")
    parser.add_argument(
        "--bergson-batch-tokens", type=int, default=None, help="smaller batches for bergson, which holds all logits"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, default=None, help="skip cells that need more")
    parser.add_argument("--quick", action="store_true", help="one small cell, two repeats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--name", default="influence_speed", help="of the files in the output folder")
    args = parser.parse_args(words)
    if args.quick:
        args.batch, args.length, args.repeats = args.batch[:1], args.length[:1], min(args.repeats, 2)
    return args


def machine(target: FixedTarget, args: argparse.Namespace) -> dict[str, Any]:
    """The machine and the settings."""
    cuda = target.device.type == "cuda"
    trained = sum(p.numel() for p in target.parameters.values())
    return {
        "device": torch.cuda.get_device_name(target.device) if cuda else f"CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "load_average_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("optimsyn", "torch", "transformers", "peft")},
        "model": args.model,
        "parameters": sum(p.numel() for p in target.model.parameters()) - trained,
        "dtype": str(next(target.causal.base_model.parameters()).dtype).removeprefix("torch."),
        "lora_r": next(iter(target.model.peft_config.values())).r,
        "trained_parameters": trained,
        "seed": args.seed,
        "repeats": args.repeats,
    }


def pool_of(args: argparse.Namespace, target: FixedTarget) -> dict[str, list[Sample]]:
    """Samples, validation questions and warm-up samples, without overlap; closed book."""
    kept = []
    for row in iter_json(args.pool):
        facts = {key: row[key] for key in ("id", "question", "answer", "answer_index") if row.get(key) is not None}
        choices = tuple(row["choices"]) if row.get("choices") else None
        sample = sample_of(Question(**facts, choices=choices))
        try:
            if len(target.encode(sample).input_ids) <= args.max_tokens:
                kept.append(sample)
        except ModelError:
            continue  # longer than the target's limit
    count = args.samples or 32
    needed = count + args.questions + 16
    if len(kept) < needed:
        raise SystemExit(
            f"{args.pool.name}: {len(kept)} questions of at most {args.max_tokens} tokens, {needed} needed"
        )
    drawn = random.Random(args.seed).sample(kept, needed)
    return {
        "samples": drawn[:count],
        "questions": drawn[count : count + args.questions],
        "warm_up": drawn[count + args.questions :],
    }


def too_large(target: FixedTarget, batch: int, length: int, args: argparse.Namespace) -> str | None:
    """Why a cell does not fit, by a rough count; None if it does."""
    if args.memory_gb is None:
        return None
    config = target.causal.config.get_text_config()
    size = next(target.causal.base_model.parameters()).dtype.itemsize
    weights = sum(p.numel() * p.element_size() for p in target.model.parameters())
    # Per token and layer, some 34 numbers of the hidden size and 4 of the intermediate size stay in memory.
    layer = 34 * config.hidden_size + 4 * config.intermediate_size
    activations = batch * length * config.num_hidden_layers * layer * size
    logits = 3 * 4 * length * config.vocab_size if {"less"} & set(args.modes) else 0
    if args.bergson:
        logits = 3 * 4 * batch * length * config.vocab_size
    needed = (weights + max(activations, logits)) / 2**30
    if needed <= args.memory_gb:
        return None
    return f"would take about {needed:.1f} GiB, more than --memory-gb {args.memory_gb:g}"


def timed(modes: Sequence[Mode], samples: Sequence[Sample], repeats: int) -> tuple[dict[str, list[Measured]], Any]:
    """Runs every mode once per repeat, in rotated order; also returns each mode's last result."""
    for mode in modes:
        # bergson has its own warm-up. The projection costs the same for one sample as for sixteen, and needs no first
        # run on a processor.
        if mode.name != "bergson" and (torch.cuda.is_available() or not mode.name.startswith("less")):
            mode.run(samples[:2])
    taken: dict[str, list[Measured]] = {mode.name: [] for mode in modes}
    last: dict[str, Any] = {}
    for repeat in range(repeats):
        for i in range(len(modes)):
            mode = modes[(i + repeat) % len(modes)]
            last[mode.name], measured = mode.run(samples)
            taken[mode.name].append(measured)
            print(f"  repeat {repeat + 1}: {mode.name} {measured.seconds:.2f} s", flush=True)
    return taken, last


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def cell(
    name: str, target: FixedTarget, parts: dict[str, list[Sample]], batch_tokens: int, args: Any
) -> dict[str, Any]:
    """All modes on one set of samples."""
    samples = parts["samples"]
    encoded = pairs_of(target, samples)
    tokens = sum(len(item.input_ids) for item in encoded)
    absent, bergson = {}, None
    print(f"{name}: {len(samples)} samples, {tokens} tokens", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        modes = modes_of(
            target,
            parts["questions"],
            batch_tokens=batch_tokens,
            names=args.modes,
            seed=args.seed,
            folder=folder / "directions",
            less_seconds=args.less_seconds,
        )
        if args.bergson:
            try:
                bergson = Bergson(
                    args.bergson,
                    target,
                    samples,
                    batch_tokens=args.bergson_batch_tokens or batch_tokens,
                    model=args.model,
                    threads=args.threads,
                    folder=folder,
                )
                modes.append(bergson.mode())
            except (RuntimeError, OSError) as error:
                absent["bergson"] = f"did not start: {error}"
        else:
            absent["bergson"] = "no --bergson PYTHON was given"
        try:
            taken, last = timed(modes, samples, args.repeats)
        finally:
            if bergson is not None:
                bergson.close()
    result: dict[str, Any] = {
        "name": name,
        "samples": len(samples),
        "tokens": tokens,
        "label_tokens": sum(item.label_tokens for item in encoded),
        "batches": len(list(target.batches(encoded, batch_tokens))),
        "modes": {mode.name: figures(mode, taken, len(samples), tokens) for mode in modes},
        "absent": absent,
    }
    for name in ("twin", "forward"):
        if {name, "linear"} <= set(last):
            result[f"spearman_{name}_linear"] = float(spearmanr(last[name].total, last["linear"].total).statistic)
    return result


def figures(mode: Mode, taken: dict[str, list[Measured]], samples: int, tokens: int) -> dict[str, Any]:
    """A mode's part of the result."""
    runs = taken[mode.name]
    seconds = statistics.median(run.seconds for run in runs)
    result: dict[str, Any] = {
        "note": mode.note,
        "seconds": [run.seconds for run in runs],
        "cpu_seconds": [run.cpu_seconds for run in runs],
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
    }
    if parts := [run.part for run in runs if run.part]:
        result["extrapolated"] = parts[-1]
    peaks = [run.peak for run in runs if run.peak is not None]
    if peaks:
        result["peak_mib"] = max(peaks) / MIB
        if mode.name != "bergson":
            result["above_resting_mib"] = max((run.peak or 0) - run.resting for run in runs) / MIB
    floor = taken.get("floor")
    if floor:
        result["ratio"] = spread([run.seconds / base.seconds for run, base in zip(runs, floor, strict=True)])
        result["cpu_ratio"] = spread(
            [run.cpu_seconds / base.cpu_seconds for run, base in zip(runs, floor, strict=True)]
        )
    return result


def criteria(cell: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The limits of a cell, its values, and whether they pass."""
    modes = cell["modes"]
    large = args.model == "qwen3-8b-shape"
    checks: list[dict[str, Any]] = []

    def add(label: str, value: float, limit: float, *, most: bool) -> None:
        checks.append(
            {"what": label, "value": value, "limit": limit, "pass": value <= limit if most else value >= limit}
        )

    def ratio(over: str, under: str, key: str) -> float:
        pairs = zip(modes[over][key], modes[under][key], strict=True)
        return statistics.median(a / b for a, b in pairs)

    if {"floor", "exact"} <= set(modes):
        add("exact / floor, time", ratio("exact", "floor", "seconds"), 1.15 if large else 1.25, most=True)
    if {"less", "exact"} <= set(modes):
        add("less / exact, time", ratio("less", "exact", "seconds"), 10 if large else 2.5, most=False)
    if {"floor", "twin"} <= set(modes):
        add("twin / floor, time", ratio("twin", "floor", "seconds"), 0.9 if large else 1.0, most=True)
    for name in ("twin", "forward"):
        if f"spearman_{name}_linear" in cell:
            value = cell[f"spearman_{name}_linear"]
            add(f"Spearman of {name} with the exact linearised dot", value, 0.98, most=False)
    for mode, limit in (("exact", 1.2), ("twin", 1.0)):
        if {"floor", mode} <= set(modes) and "peak_mib" in modes[mode]:
            peak, above = (modes[mode][key] / modes["floor"][key] for key in ("peak_mib", "above_resting_mib"))
            add(f"{mode} / floor, peak memory", peak, limit, most=True)
            add(f"{mode} / floor, memory above the resting size", above, limit, most=True)
    return checks


def markdown(result: dict[str, Any]) -> str:
    """Tables and criteria."""
    facts = result["machine"]
    shapes = len(result["cells"]) > 1
    lines = [
        f"# Speed of influence{' by batch and length' if shapes else ''}",
        "",
        ", ".join(f"{key} {value}" for key, value in facts.items()),
        "",
    ]
    ratios = "Ratios to the floor are medians over repeats of paired ratios (least to most)."
    if shapes:
        return "\n".join([*lines, f"Samples a batch × tokens a sample. {ratios}", "", *grid(result["cells"])])
    lines += [f"{ratios} CPU: processor time.", ""]
    for cell in result["cells"]:
        lines += [f"## {cell['name']}", ""]
        if "skipped" in cell:
            lines += [f"Skipped: {cell['skipped']}.", ""]
            continue
        lines += [f"{cell['samples']} samples, {cell['tokens']} tokens, {cell['batches']} batches.", ""]
        lines += ["| mode | samples/s | tokens/s | time / floor | CPU / floor | peak MiB | above resting MiB | what |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---|"]
        for name, mode in cell["modes"].items():
            row = [name, f"{mode['samples_per_second']:.2f}", f"{mode['tokens_per_second']:.0f}"]
            for key in ("ratio", "cpu_ratio"):
                part = mode.get(key)
                row.append(f"{part['median']:.2f} ({part['low']:.2f} to {part['high']:.2f})" if part else "")
            row += [f"{mode[key]:.0f}" if key in mode else "" for key in ("peak_mib", "above_resting_mib")]
            note = mode["note"] + (f"; *extrapolated {mode['extrapolated']}*" if "extrapolated" in mode else "")
            lines.append("| " + " | ".join([*row, note]) + " |")
        lines += [""] + [f"{name} is absent: {why}." for name, why in cell["absent"].items()]
        lines += [""] + [
            f"- {'pass' if check['pass'] else 'MISS'}: {check['what']} {check['value']:.3f} (limit {check['limit']:g})"
            for check in cell["criteria"]
        ]
        lines.append("")
    return "\n".join(lines)


def grid(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Time and peak memory of each mode in units of the floor's, a row per cell. The rest is in the JSON file."""
    measured = [cell for cell in cells if "skipped" not in cell]
    names = list(dict.fromkeys(name for cell in measured for name in cell["modes"] if name != "floor"))
    times = [f"| time / floor | floor, tokens/s | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    peaks = [f"| peak memory / floor | floor, MiB | {' | '.join(names)} |", times[1]]
    for cell in measured:
        modes = cell["modes"]
        floor = modes.get("floor", {})
        speed = f"{floor['tokens_per_second']:.0f}" if floor else ""
        ratios = [modes.get(name, {}).get("ratio") for name in names]
        columns = [
            f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "" for ratio in ratios
        ]
        marks = ["*" if "extrapolated" in modes.get(name, {}) else "" for name in names]
        columns = [ratio + mark for ratio, mark in zip(columns, marks, strict=True)]
        times.append(f"| {' | '.join([cell['name'], speed, *columns])} |")
        least = floor.get("peak_mib")
        columns = [f"{modes[name]['peak_mib'] / least:.2f}" if least and name in modes else "" for name in names]
        peaks.append(f"| {' | '.join([cell['name'], f'{least:.0f}' if least else '', *columns])} |")
    skipped = [f"{cell['name']}: {cell['skipped']}." for cell in cells if "skipped" in cell]
    if any("extrapolated" in mode for cell in measured for mode in cell["modes"].values()):
        skipped.insert(0, "\\* extrapolated from a part of the work (`--less-seconds`).")
    return [*times, "", *peaks, "", *skipped, ""]


def run(args: argparse.Namespace, target: FixedTarget) -> dict[str, Any]:
    """Runs all cells; rewrites the tables after each, since a grid takes an hour."""
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"machine": machine(target, args), "cells": []}

    def done(row: dict[str, Any]) -> None:
        row["criteria"] = [] if "skipped" in row else criteria(row, args)
        result["cells"].append(row)
        write_json(args.output / f"{args.name}.json", result)
        write_text(args.output / f"{args.name}.md", markdown(result))

    if args.pool is not None:
        parts = pool_of(args, target)
        target.warm_up(parts["warm_up"], steps=4, batch_size=4, seed=args.seed)
        longest = max(len(target.encode(sample).input_ids) for sample in parts["samples"])
        name = f"lengths as in a pool, batches of {args.batch_tokens} tokens, longest sample {longest}"
        done(cell(name, target, parts, args.batch_tokens, args))
        return result
    target.warm_up(target.random_samples(16, 32, answer=0.5, seed=args.seed + 1), steps=4, seed=args.seed)
    for length, batch in itertools.product(args.length, args.batch):
        name = f"{batch} × {length}"
        reason = too_large(target, batch, length, args)
        if reason is not None:
            print(f"{name}: skipped, it {reason}", flush=True)
            done({"name": name, "skipped": reason})
            continue
        count = max(args.samples or 16, batch)  # at least one whole batch
        parts = {
            "samples": target.random_samples(count, length, answer=args.answer, seed=args.seed + 2),
            "questions": target.random_samples(args.questions, length, answer=args.answer, seed=args.seed + 3),
        }
        done(cell(name, target, parts, batch * length, args))
    return result


def main(words: Sequence[str] | None = None) -> None:
    """Runs, writes and prints the tables."""
    args = arguments(words)
    print(markdown(run(args, load_target(args))))


if __name__ == "__main__":
    main()
