"""The dataset of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError
from optimsyn.base.terminal.table import Shown
from optimsyn.data.forms import shown
from optimsyn.data.records import Pair
from optimsyn.runs.datasets.export import CARD, PARQUET

if TYPE_CHECKING:
    from datasets import Dataset as HubDataset
    from pandas import DataFrame

    from optimsyn.base.terminal.table import Table

_LISTED = 5


class Dataset(Shown, Sequence[Pair]):
    """The pairs of `dataset/train.parquet` with their lineage; displayed in notebooks and terminals.

    Args:
        folder: A run folder, or a folder that `export_dataset` wrote, such as `<run>/dataset`.

    Raises:
        DataError: There is no dataset in the folder, or its file is damaged.

    Example:
        >>> run.dataset[0].question                                                  # doctest: +SKIP
        >>> sorted(run.dataset.influence)                                            # doctest: +SKIP
    """

    def __init__(self, folder: Path | str) -> None:
        place = Path(folder).expanduser()
        place = place / "dataset" if (place / "manifest.json").is_file() else place
        if not (place / PARQUET).is_file():
            raise DataError(f"{place / PARQUET}: there is no dataset yet; the stage synthesize writes it")
        self.folder = place

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the file, with every column."""
        rows: list[dict[str, Any]] = self._arrow().to_pylist()
        return rows

    def _arrow(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.folder / PARQUET)
        except pa.ArrowInvalid as error:
            problem = str(error).splitlines()[0]
            raise DataError(f"{self.folder / PARQUET}: not readable ({problem}); run synthesize again") from None

    def to_pandas(self) -> DataFrame:
        """A pandas DataFrame, a row for each pair; the card describes the columns (`dataset.card`).

        `messages` and `influence_by_subtask` are lists of mappings, `rubric` is a mapping or None, `choices` a list or
        None, and `answer_index` a nullable integer.
        """
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=self.columns)
        whole = [name for name in ("answer_index", "char_start", "char_end", "seed") if name in frame]
        return frame.astype(dict.fromkeys(whole, "Int64"))

    def to_hf(self) -> HubDataset:
        """A `datasets.Dataset` in memory with the same columns, as `load_dataset` gives it from the hub."""
        import datasets

        return datasets.Dataset(self._arrow())

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._arrow().column_names)

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
        return map(self._pair, self.rows)

    @overload
    def __getitem__(self, place: int) -> Pair: ...

    @overload
    def __getitem__(self, place: slice) -> list[Pair]: ...

    def __getitem__(self, place: int | slice) -> Pair | list[Pair]:
        if isinstance(place, slice):
            return list(map(self._pair, self.rows[place]))
        return self._pair(self.rows[place])

    def _pair(self, row: Mapping[str, Any]) -> Pair:
        try:
            fields = {name: row[name] for name in Pair.model_fields if name in row}
            if "details" in fields:
                fields["details"] = json.loads(fields["details"] or "{}")
                fields["form"] = fields["form"] or ""
            return Pair(**fields)
        except (DataError, ValueError) as error:
            raise DataError(f"{self.folder / PARQUET}: row {row.get('id')!r}: {error}; run synthesize again") from None

    def __repr__(self) -> str:
        return f"Dataset({plural(len(self), 'pair')}, {str(self.folder)!r})"

    def _table(self) -> Table:
        from optimsyn.base.terminal.labels import variant_label
        from optimsyn.base.terminal.table import Table, decimals_for, fixed

        decimals = decimals_for(value for value in self.influence if value is not None)
        order = sorted(range(len(self)), key=lambda place: -(self.influence[place] or 0.0))
        body = []
        for place in order[:_LISTED]:
            row = self.rows[place]
            (question, *below), answer = shown(self._pair(row))
            listed = "".join(f"\n{chr(65 + i)}. {part}" for i, part in enumerate(below))
            body.append((question + listed, answer, row["document_id"], fixed(row["influence"], decimals)))
        variants = ", ".join(variant_label(name) for name in dict.fromkeys(row["variant"] for row in self.rows))
        documents = len({row["document_id"] for row in self.rows})
        note = f"Columns: {', '.join(self.columns)}. Card: dataset/{CARD}."
        if len(self) > _LISTED:
            note = f"Those of highest influence, {_LISTED} of {len(self)}. {note}"
        return Table(
            title=f"{plural(len(self), 'pair')} from {plural(documents, 'document')}: {variants}",
            columns=("question", "answer", "document", "influence"),
            rows=tuple(body),
            right=frozenset({3}),
            note=note,
        )
