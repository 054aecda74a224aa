"""The start of a study: its design is written down once, before anything runs, and later changes are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json
from optimsyn.base.identity import differing
from optimsyn.base.version import __version__
from optimsyn.recipe.problems import in_a_line
from optimsyn.runs.manifest import now
from optimsyn.study.arms.study_file import Contrast, StudyCell, StudyFile, contrasts_of

REGISTERED = "registered.json"


class Registered(BaseModel):
    """The content of `registered.json`.

    Attributes:
        study: The study file's design.
        recipes: Fingerprint of the recipe of each domain and control.
    """

    model_config = ConfigDict(extra="forbid")

    started: str
    optimsyn: str
    fingerprint: str
    study: dict[str, Any]
    recipes: dict[str, str]

    @property
    def contrasts(self) -> list[Contrast]:
        """The contrasts that were named before the start."""
        return contrasts_of(self.study["contrasts"])

    @property
    def metric(self) -> str:
        """The metric that they are tested on."""
        return str(self.study["metric"])

    @property
    def alpha(self) -> float:
        """The level of the tests."""
        return float(self.study["alpha"])


def registered(folder: Path) -> Registered | None:
    """The design that a study has started with; None before.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / REGISTERED
    if not path.is_file():
        return None
    try:
        return Registered.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise DataError(
            f"{path}: cannot be read ({in_a_line(error)}); restore it, or start anew in another --root"
        ) from error


def as_of_now(study: StudyFile, cells: Sequence[StudyCell]) -> Registered:
    """The design as it is now."""
    recipes = {f"{each.domain}@{each.control}": each.recipe.fingerprint for each in reversed(cells)}
    return Registered(
        started=now(), optimsyn=__version__, fingerprint=study.fingerprint, study=study.registered, recipes=recipes
    )


def register(study: StudyFile, cells: Sequence[StudyCell], folder: Path) -> Registered:
    """Writes the design at the first start; later starts leave it."""
    found = registered(folder)
    if found is None:
        found = as_of_now(study, cells)
        write_json(folder / REGISTERED, found.model_dump(mode="json"))
    return found


def changes_since(start: Registered, study: StudyFile, cells: Sequence[StudyCell]) -> list[str]:
    """What has changed in the design since the start, a sentence each."""
    before, after = start.study, study.registered
    changes = []
    for name in after:
        old, new = before.get(name), after[name]
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list):
            changes += _listed(name, [_text(each) for each in old], [_text(each) for each in new])
        elif isinstance(old, dict) and isinstance(new, dict):
            names = [each for each in {**old, **new} if old.get(each) != new.get(each)]
            changes.append(f"{name}: {', '.join(names)} changed after the start")
        else:
            changes.append(f"{name}: {old} at the start, {new} now; the contrasts stay on what was registered")
    now_recipes = as_of_now(study, cells).recipes
    both = {name: text for name, text in start.recipes.items() if name in now_recipes and _same_seed(before, after)}
    changes += [
        f"recipe of {name.removesuffix('@influence')}: changed after the start, so its runs are others"
        for name in differing(both, {name: now_recipes[name] for name in both})
    ]
    return changes


def contrasts_by_origin(start: Registered, study: StudyFile) -> dict[Contrast, bool]:
    """All contrasts: those registered at the start (True), and those added since."""
    return dict.fromkeys(start.contrasts, True) | {
        each: False for each in study.named_contrasts if each not in start.contrasts
    }


def _same_seed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """The fingerprints are those of the first seed."""
    return bool(before["seeds"][0] == after["seeds"][0])


def _listed(name: str, old: list[str], new: list[str]) -> list[str]:
    added, removed = [each for each in new if each not in old], [each for each in old if each not in new]
    changes = [f"{name}: {', '.join(added)} added after the start"] if added else []
    changes += [f"{name}: {', '.join(removed)} removed after the start"] if removed else []
    return changes or [f"{name}: put into another order after the start"]


def _text(value: Any) -> str:
    return " − ".join(map(str, value)) if isinstance(value, list) else str(value)
