"""Pages of the documentation, the code in them, and what their Python examples take for given."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The tools import each other by their bare names, as scripts do.
sys.path.insert(0, str(ROOT / "tools"))

_BLOCK = re.compile(
    r"^(?:<!-- test: (?P<how>\w+) -->\n)?^(?P<fence>`{3,})(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block: its page and line, its language, and how it is tested (`run`, or `compile` where it says so)."""

    page: Path
    line: int
    language: str
    code: str
    how: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page that a person wrote."""
    return [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def blocks(language: str, page: Path | None = None) -> list[Block]:
    """The code blocks of one language, in order."""
    return [
        block
        for path in ([page] if page is not None else pages())
        for block in _blocks_of(path)
        if block.language == language
    ]


def _blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        yield Block(page, line, match["language"], match["code"], match["how"] or "run")


class Prepared:
    """The objects that examples take for given, each made when an example first names it."""

    def __init__(self) -> None:
        self._makers: dict[str, Callable[[], Any]] = {
            name.removeprefix("make_"): getattr(self, name) for name in dir(self) if name.startswith("make_")
        }
        self._made: dict[str, Any] = {}

    def into(self, namespace: dict[str, Any], code: str) -> None:
        """Puts what the code names and the namespace lacks into the namespace."""
        used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
        for name in used & self._makers.keys() - namespace.keys():
            if name not in self._made:
                self._made[name] = self._makers[name]()
            namespace[name] = self._made[name]

    def make_questions(self) -> Any:
        from tests.training_helpers import QUESTIONS

        return QUESTIONS

    def make_pairs(self) -> Any:
        from tests.training_helpers import make_pairs

        return make_pairs()

    def make_target(self) -> Any:
        import torch

        from tests.influence_helpers import tiny_target

        return tiny_target(dtype=torch.float32)

    def make_pair(self) -> Any:
        from tests.programs_helpers import pair

        return pair()

    def make_passage(self) -> Any:
        from tests.programs_helpers import passage

        return passage()

    def make_pair_writer(self) -> Any:
        from optimsyn.programs.pair import PairWriter, TaskShape
        from tests.programs_helpers import Scripted

        return PairWriter(Scripted("{}"), TaskShape.of(self.make_questions()))

    def make_checks(self) -> Any:
        from optimsyn.programs.checker import Checker
        from optimsyn.recipe.sections.synthesis import Checks

        return Checker(Checks(), self.make_questions())

    def make_dataset(self) -> Any:
        import tempfile

        from optimsyn import Dataset
        from optimsyn.runs.datasets.export import export_dataset
        from tests.report_helpers import judgement, make_recipe

        folder = Path(tempfile.mkdtemp())
        rows = [judgement("policy", number, 0.1 * number) for number in range(3)]
        export_dataset(folder, rows, recipe=make_recipe(), variant="policy", losses={"kept": 3})
        return Dataset(folder)

    def make_run(self) -> Any:
        from optimsyn import Run

        return Run.start("quickstart", size="tiny")
