"""A toy study of real runs: two domains, two seeds and two arms, killed in the middle, with a service that counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kill_helpers import identity, kept

from optimsyn.recipe.recipe import Recipe
from tests.llm_helpers import Answer, Service
from tests.stages_helpers import answer

DELAY_S = 0.1
# At the kill; a run sends more than half of them.
REQUESTS = 12


def _study(recipe: Recipe, folder: Path) -> Path:
    for domain in ("law", "music"):
        raw = recipe.model_dump(mode="json")
        raw["name"] = domain
        # Requests of two domains are never the same.
        documents = folder / f"{domain}.jsonl"
        documents.write_text((folder / "documents.jsonl").read_text().replace("left the hills", f"left for {domain}"))
        raw["documents"]["source"]["path"] = str(documents)
        (folder / f"{domain}.yaml").write_text(yaml.safe_dump(raw))
    study = {
        "name": "toy",
        "recipes": {"law": "law.yaml", "music": "music.yaml"},
        "set": {"optimizers.prompt.enabled": False, "reward.look.pairs": 0},
        "arms": ["no_rubric", "static"],
        "seeds": [0, 1],
        "contrasts": [["static", "no_rubric"]],
        "metric": "answer_loss",
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def _start(path: Path, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "optimsyn", "study", str(path), "--root", str(root), "--jobs", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_study_of_real_runs_survives_kill_9_and_buys_nothing_twice(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    def slowly(number: int, request: dict[str, Any]) -> Answer:
        return replace(answer(number, request), delay_s=DELAY_S)

    served.answer = slowly
    path, root = _study(recipe, tmp_path), tmp_path / "runs"
    with _start(path, root) as process:
        # In the warm-up of the first two runs.
        while process.poll() is None and len(served.requests) < REQUESTS:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(5 * DELAY_S)
    while served.busy:
        time.sleep(0.02)
    before, had = len(served.requests), kept(root / "toy")
    assert had

    process = _start(path, root)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert said.splitlines()[-1] == str(root / "toy" / "study.html")
    # Each run asks its service one tiny question, the same for every seed.
    asked = [identity(each) if "Reply with" not in str(each["messages"]) else "" for each in served.requests]
    again = {identity(each) for each in served.requests[before:]} & had
    assert not {each for each in again if "Reply with" not in each}, "a reply that had come was asked again"
    repeated = Counter(filter(None, asked))
    assert repeated.total() - len(repeated) <= 2 * recipe.models.generator.concurrency

    found = json.loads((root / "toy" / "study.json").read_text())
    assert [each["state"] for each in found["cells"]] == ["finished"] * 4
    means = {}
    for domain in ("law", "music"):
        of_seeds = []
        for folder in (root / "toy").glob(f"{domain}-influence-s*"):
            rows = [
                [json.loads(line)["loss"] for line in (folder / "evaluate" / f"{arm}.jsonl").read_text().splitlines()]
                for arm in ("static", "no_rubric")
            ]
            of_seeds.append(np.mean(np.subtract(rows[0], rows[1])))
        means[domain] = np.mean(of_seeds)
    (contrast,) = found["contrasts"]
    assert {name: each["value"] for name, each in contrast["domains"].items()} == pytest.approx(means)
    assert contrast["pooled"]["value"] == pytest.approx(np.mean([*means.values()]))
    page = (root / "toy" / "study.html").read_text()
    assert f"{contrast['pooled']['value']:+.3f}".replace("-", "−") in page
