"""Ways to train a rubric policy on one pool of judged rubrics, each measured on passages that none was trained on.

    python benchmarks/policy_remedies.py --runs runs/humanities-… --output benchmarks/results/policy_remedies.json
    python benchmarks/policy_remedies.py --recipe benchmarks/study/medicine.yaml --set FIELD=VALUE ... \
        --pool runs/medicine-…/train_policy/rubrics.jsonl --output benchmarks/results/policy_remedies.json

The pool is what a run's policy training sampled and judged; this run's own warm-up judges the held passages. A policy
is the untrained one, or trained anew from it:

- `best`: expert iteration as a run does it, on the valid rubrics above their passage's mean;
- `spread`: the same with an invalid pair at one standard deviation of the valid ones' influence below 0;
- `random`: the same number of rubrics, drawn by chance from the valid ones of each passage: what training on its own
  rubrics does to the policy without any reward;
- `preferences`: DPO, the best against the worst rubric of each passage, with the same rewards as `spread`;
- `random_preferences`: the same with the rewards of each passage's valid rubrics given to others of them, so that only
  valid against invalid is left to learn;
- `predicted`: expert iteration on those of each passage's rubrics of which their words predict most, so that only what
  carries over between passages is learned (ridge regression as in `rubric_words.py`, predictions from other passages).

With `--runs` runs whose policy was trained in rounds are measured too, from what they keep.

Each is asked for `group_size` rubrics for every held passage, with the same seeds. Resumes: what is sampled and judged
is kept in the run's folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rubric_words import features, within

from optimsyn.base.files import iter_json, write_json
from optimsyn.base.seeds import derive_seed
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.optimize.rounds.held import compared, held_ids
from optimsyn.optimize.rounds.judged import JudgedRubric, Rubric, RubricFile, by_passage
from optimsyn.optimize.rounds.training import Trained, on_preferences, on_the_best
from optimsyn.optimize.rounds.weights import kl_per_token, put_weights, weights_of

if TYPE_CHECKING:
    from optimsyn.stages.shared import Tools

Pool = list[JudgedRubric]
Passages = Sequence[Sequence[Rubric]]
# What a picture calls them.
NAMES = {
    "best": "expert iteration",
    "spread": "the same, invalid pairs at one SD",
    "random": "as many valid rubrics by chance",
    "preferences": "preferences (DPO)",
    "random_preferences": "preferences (DPO), rewards by chance",
    "predicted": "expert iteration on predicted rewards",
}
PICTURE = Path(__file__).parents[1] / "optimsyn" / "data" / "bundled" / "policies.json"
_PENALTY = 3.0  # of the ridge regression
_FOLDS = 10


def rewards_of(pool: Pool) -> Pool:
    """The pool as it was judged."""
    return pool


def spread_of(pool: Pool) -> float:
    """The standard deviation of the valid pairs' influence within their passage."""
    valid = [row for row in pool if row.valid and row.reward is not None]
    values = np.array([row.reward for row in valid], dtype=float)
    return float(within(values, np.array([row.passage_id for row in valid])).std())


def in_spread(pool: Pool) -> Pool:
    """Invalid pairs at one standard deviation of the valid pairs' influence, below 0."""
    penalty = spread_of(pool)
    return [row if row.valid or row.reward is None else replace(row, reward=-penalty) for row in pool]


def at_random(pool: Pool) -> Pool:
    """The pool with the rewards of each passage's valid rubrics given to others of them."""
    random = np.random.default_rng(0)
    result = list(pool)
    for passage in {row.passage_id: None for row in pool}:
        places = [n for n, row in enumerate(pool) if row.passage_id == passage and row.valid and row.reward is not None]
        for place, other in zip(places, random.permutation(places), strict=True):
            result[place] = replace(pool[place], reward=pool[other].reward)
    return result


def predicted(pool: Pool) -> Pool:
    """What the words of each rubric predict of its influence, less its passage's mean, from other passages."""
    rows = [row for row in pool if row.reward is not None]
    passages = np.array([row.passage_id for row in rows])
    table = features([row.text for row in rows])
    kernel = table @ table.T
    known = np.array([row.valid for row in rows])
    values = np.zeros(len(rows))
    values[known] = within(np.array([row.reward for row in rows], dtype=float)[known], passages[known])
    names = sorted(set(passages))
    np.random.default_rng(0).shuffle(names)
    result = np.zeros(len(rows))
    for part in np.array_split(names, _FOLDS):
        fold = np.isin(passages, part)
        rest = ~fold & known
        inner = kernel[np.ix_(rest, rest)] + _PENALTY * np.eye(int(rest.sum()))
        result[fold] = kernel[np.ix_(fold, rest)] @ np.linalg.solve(inner, values[rest])
    return [replace(row, valid=True, reward=float(value)) for row, value in zip(rows, result, strict=True)]


WAYS: dict[str, tuple[Callable[[Pool], Pool], Callable[[PolicyTask, Any, Any, Passages], Trained]]] = {
    "best": (rewards_of, on_the_best),
    "spread": (in_spread, on_the_best),
    "random": (at_random, on_the_best),
    "preferences": (in_spread, on_preferences),
    "random_preferences": (lambda pool: at_random(in_spread(pool)), on_preferences),
    "predicted": (predicted, on_the_best),
}


def asked(task: PolicyTask, model: Any, tokenizer: Any, passages: Sequence[Any], file: RubricFile) -> Pool:
    """The judged rubrics of the model as it is now for each passage; those in the file are not asked for again."""
    for first in range(0, len(passages), task.passages_per_step):
        part = [
            (group, passages[group])
            for group in range(first, min(first + task.passages_per_step, len(passages)))
            if file.group((0, True, group, 0)) is None
        ]
        rows = [
            task.row(
                tokenizer,
                passage,
                derive_seed(task.seed, "held", passage.id),
                task.shape.kind_for(derive_seed(task.seed, "kind", passage.id)),
            )
            for _, passage in part
        ]
        seeds = [derive_seed(task.seed, "sample", "held", passage.id) for _, passage in part]
        sampled = []
        for row, group in zip(rows, task.sample_all(model, tokenizer, rows, seeds), strict=True):
            task.trl_reward.write_ahead([row] * len(group), [rubric.text for rubric in group])
            sampled.append(group)
        if not part:
            continue
        flat = [(row, rubric) for row, group in zip(rows, sampled, strict=True) for rubric in group]
        verdicts = task.judgements([row for row, _ in flat], [rubric.text for _, rubric in flat])
        places = [(0, True, number, 0) for (number, _), group in zip(part, sampled, strict=True) for _ in group]
        file.add(
            [
                JudgedRubric(
                    *place,
                    passage_id=verdict.passage_id,
                    seed=verdict.seed,
                    text=rubric.text,
                    prompt=rubric.prompt,
                    completion=rubric.completion,
                    finished=rubric.finished,
                    valid=verdict.valid,
                    reward=None if verdict.unjudged is not None else verdict.reward,
                )
                for place, (_, rubric), verdict in zip(places, flat, verdicts, strict=True)
            ]
        )
    return file.all()


def of_passages(rows: Pool, value: Callable[[JudgedRubric], float | None]) -> dict[str, float]:
    """The mean of a value over the rubrics of each passage, without those where it is None."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (number := value(row)) is not None:
            found.setdefault(row.passage_id, []).append(number)
    return {passage: fmean(numbers) for passage, numbers in found.items()}


def described(rows: Pool, untrained: Pool) -> dict[str, Any]:
    """What a policy earned on the held passages, and against the untrained one."""
    values: dict[str, Callable[[JudgedRubric], float | None]] = {
        "reward": lambda row: row.reward,
        "valid": lambda row: None if row.reward is None else float(row.valid),
        "influence_of_valid": lambda row: row.reward if row.valid else None,
    }
    result: dict[str, Any] = {"judged": sum(row.reward is not None for row in rows)}
    for name, value in values.items():
        mine, theirs = of_passages(rows, value), of_passages(untrained, value)
        gain = compared(mine, theirs)
        result[name] = fmean(number for row in rows if (number := value(row)) is not None)
        result[f"{name}_gain"] = {"mean": gain.mean, "low": gain.low, "high": gain.high, "passages": gain.passages}
    return result


def of_run(folder: Path) -> dict[str, Any]:
    """The untrained policy and that of the last round of a run, from the rubrics that it keeps."""
    rows = [JudgedRubric(**row) for row in iter_json(folder / "train_policy" / "rubrics.jsonl")]
    history = list(iter_json(folder / "train_policy" / "history.jsonl"))[-1]
    method = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["optimizers"]["policy"]["method"]
    untrained = [row for row in rows if row.held and row.round == 0]
    trained = [row for row in rows if row.held and row.round == history["step"]]
    pool = [row for row in rows if not row.held]
    common = {"pool": len(pool), "spread": spread_of(pool)}
    return {
        "untrained": {"trained_on": 0, "kl": None, **common, **described(untrained, untrained)},
        {"expert": "best", "dpo": "preferences"}[method]: {
            "trained_on": history["trained_on"],
            "kl": history["kl"],
            **common,
            **described(trained, untrained),
        },
    }


def of_picture(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `optimsyn.report.look.policies_picture`."""
    return [
        {
            "domain": recipe.replace("_", " "),
            "way": NAMES[name],
            "judged": row["pool"],
            "passages": row["reward_gain"]["passages"],
            "kl": round(row["kl"], 4),
            "spread": round(row["spread"], 5),
            **{
                end: round(row["reward_gain"][key], 5)
                for end, key in (("gain", "mean"), ("low", "low"), ("high", "high"))
            },
        }
        for recipe, policies in results.items()
        for name, row in policies.items()
        if name != "untrained"
    ]


def markdown(results: dict[str, Any]) -> str:
    """A row for each recipe and policy."""
    lines = [
        "| domain | policy | trained on | KL, nats a token | valid | influence of valid pairs: gain | reward: gain |",
        "|---|---|---:|---:|---:|---|---|",
    ]

    def shown(gain: dict[str, Any]) -> str:
        return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"

    for recipe, policies in results.items():
        for name, row in policies.items():
            gains = ["–", "–"]
            if name != "untrained":
                gains = [shown(row["influence_of_valid_gain"]), shown(row["reward_gain"])]
            kl = "–" if row["kl"] is None else f"{row['kl']:.2f}"
            lines.append(
                f"| {recipe} | {name} | {row['trained_on'] or '–'} | {kl} | {row['valid']:.0%} | {' | '.join(gains)} |"
            )
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="finished trainings in rounds")
    parser.add_argument("--recipe", type=Path, help="train here, with the pool of a run of this recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="changes of the recipe")
    parser.add_argument("--pool", type=Path, help="train_policy/rubrics.jsonl of such a run")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, help="a JSON file, to which the recipe is added; a table goes beside it")
    return parser.parse_args()


def warmed_up(args: argparse.Namespace) -> Tools:
    """The tools of a run after its warm-up."""
    from optimsyn.recipe.changes import changed
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.runs.folder import Run
    from optimsyn.stages.own import run_stage
    from optimsyn.stages.shared import Tools

    changes = {field: yaml.safe_load(value) for field, _, value in (each.partition("=") for each in args.set)}
    run = Run.open(changed(Recipe.load(args.recipe), changes), args.folder)
    for stage in ("prepare", "warm_up"):
        run_stage(run, stage)
    return Tools(run)


def learned(name: str, task: PolicyTask, model: Any, tokenizer: Any, pool: Pool) -> Trained:
    """Trains in one of the ways, or takes the weights of an earlier process."""
    from safetensors.torch import load_file, save_file

    weights, facts = task.folder / f"{name}.safetensors", task.folder / f"{name}.json"
    if facts.is_file():
        put_weights(model, load_file(weights))
        return Trained(**json.loads(facts.read_text(encoding="utf-8")))
    prepare, learn = WAYS[name]
    trained = learn(task, model, tokenizer, list(by_passage(prepare(pool)).values()))
    save_file(dict(weights_of(model)), weights)
    write_json(facts, vars(trained))
    return trained


def measured(args: argparse.Namespace, tools: Tools) -> Iterator[dict[str, Any]]:
    """What each policy earned, all so far after each."""
    from optimsyn.llm.embedded.writer import adapter_dir

    recipe, folder = tools.recipe, tools.run.folder / "policy_remedies"
    folder.mkdir(exist_ok=True)

    def new_task() -> PolicyTask:
        return PolicyTask(
            recipe.models.rubric,
            recipe.optimizers.policy,
            tools.reward("policy_remedies"),
            tools.passages_for("optimize"),
            recipe.guiding_text,
            tools.shape,
            folder,
            recipe.seed_of("policy"),
            start=adapter_dir() if recipe.models.rubric.provider == "embedded" else None,
        )

    task = new_task()
    chosen = held_ids(task.config, [passage.id for passage in task.passages], task.seed)
    held = [passage for passage in task.passages if passage.id in chosen]
    pool = [row for row in (JudgedRubric(**row) for row in iter_json(args.pool)) if not row.held]
    if known := chosen & {row.passage_id for row in pool}:
        raise SystemExit(f"{args.pool}: {len(known)} of its passages are held ones of this recipe; give its own pool")
    model, tokenizer = task.load_model()
    model = task.with_lora(model)
    start = weights_of(model)
    results: dict[str, Any] = {}
    untrained: Pool = []
    for name in ("untrained", *args.ways):
        task = new_task()
        put_weights(model, start)
        trained = Trained(0) if name == "untrained" else learned(name, task, model, tokenizer, pool)
        rows = asked(task, model, tokenizer, held, RubricFile(folder / f"{name}.jsonl", task.config.group_size))
        untrained = untrained or rows
        firsts = {row.passage_id: (row.prompt, row.completion) for row in reversed(rows)}
        results[name] = {
            "trained_on": trained.examples,
            "loss": trained.loss,
            "kl": None if name == "untrained" else kl_per_token(model, start, list(firsts.values())),
            "pool": len(pool),
            "spread": spread_of(pool),
            **described(rows, untrained),
        }
        yield results


def keep(output: Path | None, name: str, results: dict[str, Any]) -> None:
    """Prints results, and adds them to the file, the table and the picture's rows."""
    print(json.dumps({name: results}, indent=1), flush=True)
    if output is None:
        return
    written = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    written[name] = results
    write_json(output, written)
    output.with_suffix(".md").write_text(markdown(written), encoding="utf-8")
    write_json(PICTURE, of_picture(written))


def main() -> None:
    """Trains, measures, prints and writes after each policy."""
    args = arguments()
    for folder in args.runs:
        keep(args.output, folder.name.split("-")[0], of_run(folder))
    if args.recipe is not None:
        tools = warmed_up(args)
        for results in measured(args, tools):
            keep(args.output, tools.recipe.name, results)


if __name__ == "__main__":
    main()
