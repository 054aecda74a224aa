"""kill -9 and full disks at random moments of every stage: what a run loses, pays for twice, or ends with.

    python benchmarks/kills.py                     # 56 kills and 21 full disks; some twenty minutes on two cores
    python benchmarks/kills.py --kills 2 --disks 1 # the number of runs, with one moment in each of the seven stages

A small run with everything on (GRPO too) against a stub service that counts its requests. One run is undisturbed; the
moments are spread over its stages' times. Each other run is disturbed once in each stage and restarted each time, and
must end with the same files, byte for byte: dataset, pairs, judgements, adapters, histories, evaluation. A request may
be sent twice only if a kill came between its sending and shortly after its reply. The full disk is a full file system
in memory (root may mount one). Writes benchmarks/results/kills.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "benchmarks" / "results" / "kills.json"
DISK = "48m"
# A disk that is called full has at most this left.
LEFT = 300_000


def main() -> None:
    """Disturbs runs, prints each result, and writes the table."""
    from tests.kill_helpers import STAGES, differing, disk, machine, results

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8, help="runs with a kill in each stage")
    parser.add_argument("--disks", type=int, default=3, help="runs with a full disk in each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--keep", type=Path, help="copy the runs that ended otherwise to this folder")
    args = parser.parse_args()
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        with machine(work / "made") as runs:
            times = runs.undisturbed(work / "undisturbed")
            expected, alone = results(work / "undisturbed"), len(runs.served.requests)
            print("undisturbed:", json.dumps(times), f"{alone} requests", flush=True)
            for kind, count in (("kill", args.kills), ("full disk", args.disks)):
                for number in range(count):
                    chance = random.Random(f"{args.seed} {kind} {number}")
                    place = work / f"{kind.replace(' ', '_')}_{number}"
                    begun, before = time.monotonic(), len(runs.served.requests)
                    if kind == "kill":
                        trial = runs.killed(place / "root", times, list(STAGES), chance)
                        trial.differ = differing(expected, results(place / "root"))
                    else:
                        with disk(place, DISK) as mounted:
                            if mounted is None:
                                print("this user may not mount a file system: no full disks")
                                break
                            trial = runs.filled(place / "root", times, list(STAGES), chance, LEFT)
                            trial.differ = differing(expected, results(place / "root"))
                    moments = [[stage, round(seconds, 2)] for stage, seconds in trial.moments]
                    trials.append(
                        {
                            "what": kind,
                            "moments": moments,
                            "requests": len(runs.served.requests) - before,
                            "bought_again": trial.again,
                            "in_hand_at_a_kill": trial.in_hand,
                            "files_that_differ": trial.differ,
                            "told": [line.replace(f"{work}/", "") for line in trial.told],
                            "seconds": round(time.monotonic() - begun, 1),
                        }
                    )
                    print(json.dumps(trials[-1]), flush=True)
                    if args.keep is not None and trial.differ and place.is_dir():
                        shutil.copytree(place, args.keep / place.name)
                    shutil.rmtree(place, ignore_errors=True)
    text = table(trials, alone)
    print(text)
    if not args.no_write:
        value = {"seconds_by_stage": times, "requests_undisturbed": alone, "runs": trials}
        RESULT.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        RESULT.with_suffix(".md").write_text(text, encoding="utf-8")


def table(trials: list[dict[str, Any]], alone: int) -> str:
    """The table of sums."""
    lines = [
        "| | runs | moments | by stage | bought again | in hand at a kill | runs that ended otherwise |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in ("kill", "full disk"):
        of_kind = [trial for trial in trials if trial["what"] == kind]
        if not of_kind:
            continue
        stages = Counter(stage for trial in of_kind for stage, _ in trial["moments"])
        by_stage = ", ".join(f"{stage} {count}" for stage, count in stages.items())
        cells = [
            kind,
            len(of_kind),
            sum(stages.values()),
            by_stage,
            sum(trial["bought_again"] for trial in of_kind),
            sum(trial["in_hand_at_a_kill"] for trial in of_kind),
            sum(bool(trial["files_that_differ"]) for trial in of_kind),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + f"\n\nAn undisturbed run sends {alone} requests.\n"


if __name__ == "__main__":
    main()
