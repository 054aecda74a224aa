"""The dataset of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import DataError
from optimsyn.base.terminal.table import Shown
from optimsyn.data.forms import shown
from optimsyn.data.records import Pair
from optimsyn.runs.datasets.export import CARD, PARQUET

if TYPE_CHECKING:
    from optimsyn.base.terminal.table import Table

_LISTED = 5


class Dataset(Shown, Sequence[Pair]):
    """The pairs of `dataset/train.parquet` with their lineage; displayed in notebooks and terminals.

    Args:
        folder: Folder that `export_dataset` wrote, such as `<run>/dataset`.

    Raises:
        DataError: There is no dataset in the folder.

    Example:
        >>> run.dataset[0].question                                                  # doctest: +SKIP
        >>> sorted(run.dataset.influence)                                            # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / PARQUET).is_file():
            raise DataError(f"{folder / PARQUET}: there is no dataset yet; the stage synthesize writes it")
        self.folder = folder

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the file, with every column."""
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(self.folder / PARQUET).to_pylist()
        return rows

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.rows[0])

    @property
    def influence(self) -> list[float | None]:
        """Influence of each pair."""
        return [row["influence"] for row in self.rows]

    @property
    def card(self) -> str:
        """The dataset card, Markdown with a YAML header."""
        return (self.folder / CARD).read_text(encoding="utf-8")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Pair]:
        return (_pair(row) for row in self.rows)

    def __getitem__(self, place: Any) -> Any:
        rows = self.rows[place]
        return [_pair(row) for row in rows] if isinstance(rows, list) else _pair(rows)

    def __repr__(self) -> str:
        return f"Dataset({len(self)} pairs, {str(self.folder)!r})"

    def _table(self) -> Table:
        from optimsyn.base.terminal.labels import variant_label
        from optimsyn.base.terminal.table import Table, decimals_for, fixed

        decimals = decimals_for(value for value in self.influence if value is not None)
        order = sorted(range(len(self)), key=lambda place: -(self.influence[place] or 0.0))
        body = []
        for place in order[:_LISTED]:
            row = self.rows[place]
            (question, *below), answer = shown(_pair(row))
            listed = "".join(f"\n{chr(65 + i)}. {part}" for i, part in enumerate(below))
            body.append((question + listed, answer, row["document_id"], fixed(row["influence"], decimals)))
        variants = ", ".join(variant_label(name) for name in dict.fromkeys(row["variant"] for row in self.rows))
        documents = len({row["document_id"] for row in self.rows})
        note = f"Columns: {', '.join(self.columns)}. Card: dataset/{CARD}."
        if len(self) > _LISTED:
            note = f"Those of highest influence, {_LISTED} of {len(self)}. {note}"
        return Table(
            title=f"{len(self):,} pairs from {documents:,} document{'' if documents == 1 else 's'}: {variants}",
            columns=("question", "answer", "document", "influence"),
            rows=tuple(body),
            right=frozenset({3}),
            note=note,
        )


def _pair(row: Mapping[str, Any]) -> Pair:
    fields = {name: row[name] for name in Pair.model_fields if name in row}
    if "details" in fields:
        fields["details"] = json.loads(fields["details"] or "{}")
        fields["form"] = fields["form"] or ""
    return Pair.model_validate(fields)
