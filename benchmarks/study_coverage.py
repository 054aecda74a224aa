"""How often the 95 % interval of `optimsyn study` covers the truth, for few seeds; prints the table of the docs.

python benchmarks/study_coverage.py --studies 2000
"""

from __future__ import annotations

import argparse

import numpy as np

from optimsyn.study.arms import effects
from optimsyn.study.arms.effects import Differences, effect

# Standard deviations between seeds, between groups of questions, of a group in a seed, and of single questions.
SPREADS = {
    "seeds dominate": (0.12, 0.1, 0.0, 0.5),
    "about even": (0.05, 0.3, 0.0, 0.5),
    "questions dominate": (0.01, 0.4, 0.0, 0.5),
    "seeds differ by question only": (0.0, 0.1, 0.3, 0.5),
}
GROUPS = 60


def drawn(generator: np.random.Generator, seeds: int, sd: tuple[float, float, float, float]) -> Differences:
    """Differences without a true one; groups of one to nine questions."""
    group = np.repeat(np.arange(GROUPS), 1 + np.arange(GROUPS) % 9)
    of_group = generator.normal(0, sd[1], GROUPS)
    values = [
        generator.normal(0, sd[0])
        + (of_group + generator.normal(0, sd[2], GROUPS))[group]
        + generator.normal(0, sd[3], len(group))
        for _ in range(seeds)
    ]
    names = tuple(map(str, group)) * seeds
    return Differences(tuple(np.concatenate(values)), tuple(np.repeat(range(seeds), len(group)).tolist()), names)


def main() -> None:
    """Prints a row for each spread, number of domains and number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    effects.RESAMPLES = 500
    print("| spread | domains | seeds | interval covers | bootstrap covers |\n|---|---|---|---|---|")
    for name, sd in SPREADS.items():
        for domains in (1, 5):
            for seeds in (3, 5):
                generator = np.random.default_rng(seeds * 10 + domains)
                found = [effect([drawn(generator, seeds, sd) for _ in range(domains)], seed=n) for n in range(studies)]
                own = np.mean([(e.low or 0) <= 0 <= (e.high or 0) for e in found])
                boot = np.mean([(e.bootstrap_low or 0) <= 0 <= (e.bootstrap_high or 0) for e in found])
                print(f"| {name} | {domains} | {seeds} | {own:.1%} | {boot:.1%} |", flush=True)


if __name__ == "__main__":
    main()
