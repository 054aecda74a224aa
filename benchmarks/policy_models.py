"""Whether a policy of `policy_remedies.py` makes a better model than the untrained one and a fixed text do.

    python benchmarks/policy_models.py --run runs/medicine-… --pool runs/…/train_policy/rubrics.jsonl \
        --way preferences --seeds 0 1 --set synthesis.pairs=96 fine_tune.steps=48 \
        --output benchmarks/results/policy_models.json

The run is one in which `policy_remedies.py` has trained: its passages, questions and warm-up are taken over, and the
weights become the policy of a new run. Synthesis, fine-tuning and evaluation are the product's own. The first valid
pairs of each arm are kept (`select: first`), so that nothing but the source of the rubrics differs; their passages are
none that the policy was trained on or judged by. Each seed is one of the fine-tuning, on the same pairs; what sampling
other pairs would change is not in the intervals. Resumes, as runs do.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from optimsyn.base.files import iter_json, write_json
from optimsyn.base.terminal.labels import variant_label
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.optimize.rounds.weights import put_weights
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.results.built_in import TrainPolicyResult
from optimsyn.stages.own import run_stage
from optimsyn.stages.shared import Tools
from optimsyn.study.arms.outcomes import Outcome, read_outcome
from optimsyn.study.arms.result import contrast_results
from optimsyn.study.arms.study_file import METRICS, StudyCell, contrasts_of
from optimsyn.training.intervals import UNTUNED

ARMS = ("static", "untrained_policy", "policy")
_LATER = ("synthesis.", "fine_tune.", "evaluation.", "optimizers.policy.")
CONTRASTS = contrasts_of([("policy", "static"), ("policy", "untrained_policy")])


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run with policy_remedies/<way>.safetensors")
    parser.add_argument("--pool", type=Path, required=True, help="the judged rubrics that the policy was trained on")
    parser.add_argument("--way", default="preferences")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further changes of the recipe")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the fine-tuning")
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, help="a JSON file, to which the recipe is added")
    return parser.parse_args()


def recipe_of(source: Recipe, options: Sequence[str], seed: int) -> Recipe:
    """The recipe of one seed."""
    changes = {field: yaml.safe_load(value) for field, _, value in (each.partition("=") for each in options)}
    if odd := [field for field in changes if not field.startswith(_LATER)]:
        raise SystemExit(f"--set {odd[0]}: the warm-up is taken over; only {', '.join(_LATER)} may change")
    fixed = {"synthesis.arms": list(ARMS), "synthesis.select": "first", "optimizers.policy.method": "dpo"}
    return changed(source, {**fixed, **changes, "seeds.fine_tune": seed})


def taken_over(run: Run, source: Run, stages: Sequence[str]) -> Run:
    """The run with finished stages of another one, unless it has them."""
    for stage in stages:
        if run.done(stage):
            continue
        if not source.done(stage):
            raise SystemExit(f"{source.name}: {stage} has not finished; finish it first")
        if (source.folder / stage).is_dir():
            shutil.copytree(source.folder / stage, run.folder / stage, dirs_exist_ok=True)
        with run.changed_manifest() as manifest:
            mine, theirs = manifest.stage(stage), source.manifest.stage(stage)
            mine.status, mine.attempts, mine.notes = "finished", 1, {**theirs.notes, "taken_over_from": source.name}
            mine.started, mine.finished = theirs.started, theirs.finished
    return run


def with_policy(run: Run, source: Run, pool: Path, way: str) -> None:
    """Makes the trained weights the policy of the run, as the stage would leave them."""
    from safetensors.torch import load_file

    from optimsyn.llm.embedded.writer import adapter_dir

    folder = source.folder / "policy_remedies"
    tools = Tools(run)
    own = {passage.id for passage in tools.passages_for("synthesize")}
    if known := own & {
        str(row["passage_id"]) for file in (pool, folder / "untrained.jsonl") for row in iter_json(file)
    }:
        raise SystemExit(
            f"{len(known)} passages of the synthesis are among those of the policy; change synthesis.pairs"
        )
    trained = (
        f"trained by {source.name}, {way}, {sha256((folder / f'{way}.safetensors').read_bytes()).hexdigest()[:12]}"
    )
    if run.done("train_policy"):
        if TrainPolicyResult.load(run).notes != (trained,):
            raise SystemExit(f"{run.folder}: has another policy; give another --folder")
        return
    recipe = run.recipe
    with run.stage("train_policy"):
        task = PolicyTask(
            recipe.models.rubric,
            recipe.optimizers.policy,
            tools.reward("train_policy"),
            tools.passages_for("optimize"),
            recipe.guiding_text,
            tools.shape,
            run.path("train_policy"),
            recipe.seed_of("policy"),
            start=adapter_dir() if recipe.models.rubric.provider == "embedded" else None,
        )
        model, _ = task.load_model()
        model = task.with_lora(model)
        put_weights(model, load_file(folder / f"{way}.safetensors"))
        task.save(model)
        TrainPolicyResult(enabled=True, method="dpo", notes=(trained,)).save(run)


def facts_of(run: Run) -> dict[str, Any]:
    """What the pairs of each arm are like."""
    result: dict[str, Any] = {}
    for arm in ARMS:
        rows = list(iter_json(run.folder / "synthesize" / f"{arm}.candidates.jsonl"))
        kept = list(iter_json(run.folder / "synthesize" / f"{arm}.judged.jsonl"))
        influence = [row["influence"] for row in rows if row.get("influence") is not None]
        result[arm] = {
            "candidates": len(rows),
            "valid": sum(bool(row["valid"]) for row in rows) / len(rows),
            "influence_of_valid": fmean(influence),
            "pairs": len(kept),
            "commonest_answers": Counter(row["pair"]["answer"].split("\n")[0][:40] for row in kept).most_common(5),
        }
    return result


def effects_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The contrasts on every metric, with the means of each arm and of the target before fine-tuning."""
    result: dict[str, Any] = {}
    for metric in METRICS:
        if all(outcome.values["static"][metric] for outcome in outcomes):
            means = [{arm: fmean(found[metric].values()) for arm, found in each.values.items()} for each in outcomes]
            found = contrast_results(outcomes, dict.fromkeys(CONTRASTS, True), metric, 0.05)
            result[metric] = {
                "means": {arm: fmean(each[arm] for each in means) for arm in means[0]},
                "by_seed": {
                    str(contrast): [each[contrast.left.arm] - each[contrast.right.arm] for each in means]
                    for contrast in CONTRASTS
                },
                "contrasts": {each.contrast: each.pooled.model_dump() for each in found if each.pooled is not None},
            }
    return result


def markdown(results: dict[str, Any]) -> str:
    """Two tables: the pairs of each arm, and the models that they made."""
    lines = ["| run | rubrics | candidates | valid | influence of valid pairs |", "|---|---|---:|---:|---:|"]
    for name, found in results.items():
        lines += [
            f"| {name} | {variant_label(arm)} | {row['candidates']} | {row['valid']:.0%} "
            f"| {row['influence_of_valid']:+.3f} |"
            for arm, row in found["pairs"].items()
        ]
    lines += [
        "",
        "| run | metric | before | static | trained policy | policy − static | by seed |",
        f"|---|---|{'---:|' * 3}---|---|",
    ]
    contrast = str(CONTRASTS[0])
    for name, found in results.items():
        for metric in ("loss", "answer_loss", "accuracy", "token_f1"):
            if metric not in found:
                continue
            means = (f"{found[metric]['means'][arm]:.3f}" for arm in (UNTUNED, "static", "policy"))
            each, seeds = found[metric]["contrasts"][contrast], found[metric]["by_seed"][contrast]
            shown = f"{each['value']:+.3f}"
            if each["low"] is not None:
                shown += f" [{each['low']:+.3f}, {each['high']:+.3f}]"
            by_seed = ", ".join(f"{value:+.3f}" for value in seeds)
            lines.append(f"| {name} | {metric.replace('_', ' ')} | {' | '.join(means)} | {shown} | {by_seed} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints and writes after each seed."""
    args = arguments()
    source = Run.load(args.run)
    outcomes: list[Outcome] = []
    first: Run | None = None
    for seed in args.seeds:
        recipe = recipe_of(source.recipe, args.set, seed)
        run = Run.open(recipe, args.folder)
        if first is None:
            taken_over(run, source, ("prepare", "warm_up"))
            run_stage(run, "optimize_prompt")
            with_policy(run, source, args.pool, args.way)
            run_stage(run, "synthesize")
            first = run
        else:
            taken_over(run, first, ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"))
            # The target before fine-tuning is the same for all seeds.
            asked = run.path("evaluate", f"{UNTUNED}.jsonl")
            if not asked.is_file():
                shutil.copyfile(first.folder / "evaluate" / asked.name, asked)
        for stage in ("fine_tune", "evaluate"):
            run_stage(run, stage)
        cell = StudyCell(recipe.name, "influence", seed, recipe)
        outcomes.append(read_outcome(cell, run, ARMS, (UNTUNED,)))
        results = {
            "way": args.way,
            "seeds": args.seeds[: len(outcomes)],
            "pairs": facts_of(first),
            **effects_of(outcomes),
        }
        print(json.dumps(results, indent=1), flush=True)
        if args.output is not None:
            written = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
            written[f"{recipe.name}, {args.way}"] = results
            write_json(args.output, written)
            args.output.with_suffix(".md").write_text(markdown(written), encoding="utf-8")


if __name__ == "__main__":
    main()
