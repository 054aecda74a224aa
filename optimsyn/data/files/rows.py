"""Rows of a file or a hub dataset in any format, with the place of each row for error messages."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError
from optimsyn.base.suggestions import did_you_mean, file_beside, nearest
from optimsyn.base.text_files import decode
from optimsyn.base.values import kind_of
from optimsyn.data.files.file_tree import Fault, check_size, read_file, size_of
from optimsyn.recipe.bundled import BUNDLED, EMBEDDED_PREFIX, bundled_domains
from optimsyn.recipe.recipe import Documents, Questions, Source

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
# A mapping such as `choices: '=["yes", "no", "maybe"]'` gives every row the same value.
LITERAL_PREFIX = "="
_SHOWN_PROBLEMS = 20
# Excel's line for the separator, above the header.
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])\r?(?:\n|$)", re.I)
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_HEADER_CHARACTERS = 100_000
# What varies between problems of one kind: places, numbers, names.
_DIFFERING = re.compile(r"^.*?:\d+\S*:|'[^']*'|\"[^\"]*\"|\S*\d\S*|\([^()]*\)")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        where: Its place, for messages: `questions.jsonl:12` or `squad_v2[validation] row 12`.
        key: An id for rows without one.
        values: Our field names (after the recipe's `columns`) and all further columns of the row.
    """

    where: str
    key: str
    values: dict[str, Any]


def raise_problems(problems: Sequence[str]) -> None:
    """Raises all problems at once, one a line."""
    if problems:
        raise DataError("\n".join(shortened(problems)))


def shortened(problems: Sequence[str], place: str = "", *, most: int = _SHOWN_PROBLEMS) -> list[str]:
    """Twenty problems, some of every kind, and the number of further ones (of `place`, for one of several lists)."""
    more = len(problems) - most
    if more <= 0:
        return list(problems)
    turn: Counter[str] = Counter()
    order = []
    for number, problem in enumerate(problems):
        kind = _DIFFERING.sub("", problem)
        order.append((turn[kind], number))
        turn[kind] += 1
    lines = [problems[number] for number in sorted(number for _, number in sorted(order)[:most])]
    return [*lines, f"... and {more} more{place and f' of {place}'}"]


def under(field: str, error: DataError) -> DataError:
    """The error of a source with the recipe's field before each line that names none."""
    fields = [("documents", name) for name in Documents.model_fields] + [
        ("questions", name) for name in Questions.model_fields
    ]
    named = ("...", " ", f"{field}:", *(f"{section}.{name}{end}" for section, name in fields for end in ".:"))
    lines = str(error).splitlines()
    return DataError("\n".join(line if line.startswith(named) else f"{field}: {line}" for line in lines))


def sampled(items: Sequence[_T], limit: int | None, seed: int) -> list[_T]:
    """At most `limit` of the items, drawn with the seed, in the original order."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[i] for i in chosen]


def is_own_file(source: Source) -> bool:
    """Whether the source is the user's file or folder, which the user can fix, and not a hub dataset."""
    return source.hub is None


def resolve(path: str) -> Path:
    """The file or folder that a recipe's `path` means; `embedded:<name>` is a folder inside the package.

    Raises:
        DataError: There is no such file or folder, or no such embedded collection.
    """
    if path.startswith(EMBEDDED_PREFIX):
        name = path.removeprefix(EMBEDDED_PREFIX)
        domains = bundled_domains()
        if name not in domains:
            near = nearest(name, domains)
            hint = f"did you mean {EMBEDDED_PREFIX}{near}? " if near is not None else ""
            listed = ", ".join(EMBEDDED_PREFIX + domain for domain in domains)
            raise DataError(f"{path}: nothing of that name comes with optimsyn; {hint}known: {listed}")
        return BUNDLED / name
    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(f"{path}: no such file or folder.{file_beside(file)}")
    return file


def read_rows(
    source: Source, embedded_file: str = "documents.jsonl", *, torn: Callable[[Fault], None] | None = None
) -> list[Row]:
    """All rows of a file or hub dataset, after the source's `where` and `columns`; `limit` is left to the caller.

    Args:
        source: A file (JSONL, JSON list, Parquet, CSV, TSV) or a hub dataset.
        embedded_file: The file that an `embedded:` source means.
        torn: Callback for each line of a file that is no row; these are skipped. Without it they are refused.

    Raises:
        DataError: The source cannot be read; names the file, the rows and the cure.
    """
    faults: list[Fault] = []
    if source.hub is not None:
        from optimsyn.data.files.hub import read_hub

        name = f"{source.hub}[{source.split}]"
        raw = [(f"{name} row {i}", f"{source.hub}:{source.split}:{i}", row) for i, row in enumerate(read_hub(source))]
    else:
        path = resolve(str(source.path))
        if str(source.path).startswith(EMBEDDED_PREFIX):
            path = path / embedded_file
        if path.is_dir():
            raise DataError(f"{path}: is a folder; questions come from a file ({', '.join(ROW_SUFFIXES)})")
        name = path.name
        raw = []
        try:
            for number, values in _read_file(path, source, faults.append):
                raw.append((f"{path}:{number}", f"{path.stem}:{number}", values))
        except DataError as error:
            raise_problems([*(fault.message for fault in faults), str(error)])
    problems = [fault.message for fault in faults]
    if not raw and not problems:
        raise DataError(f"{name}: there are no rows in it; name a file or dataset that has some")
    columns = {column for _, _, row in raw for column in row}
    wrong = _column_problems(name, source, columns) if raw else []
    if wrong or not raw or torn is None:
        raise_problems([*problems, *wrong])
    for fault in faults:
        if torn is not None:
            torn(fault)
    rows = [Row(where, key, _mapped(row, source.columns)) for where, key, row in raw if _kept(row, source.where)]
    if not rows:
        wanted = ", ".join(f"{k} = {v!r}" for k, v in source.where.items())
        present = {k: sorted({str(_reach(row, k)) for _, _, row in raw})[:8] for k in source.where}
        raise DataError("\n".join([*shortened(problems), f"{name}: no row has {wanted}; values there: {present}"]))
    return rows


def exploded(rows: Sequence[Row], source: Source, field: str = "question") -> list[Row]:
    """One row for each item where a row holds several (TAT-QA: a table with a list of questions).

    When the column of `field` is a list, every field that the recipe maps from the same nested column is split with it,
    item by item; all other fields are repeated.
    """
    parent = source.columns.get(field, field).partition(".")[0]
    beside = [ours for ours, theirs in source.columns.items() if theirs.partition(".")[0] == parent]
    single: list[Row] = []
    for row in rows:
        items = row.values.get(field)
        if not isinstance(items, list) or not items:
            single.append(row)
            continue
        for number, item in enumerate(items):
            values = {**row.values, field: item}
            for name in beside:
                dealt = row.values.get(name)
                if isinstance(dealt, list) and len(dealt) == len(items):
                    values[name] = dealt[number]
            values = {name: value for name, value in values.items() if value is not None}
            single.append(Row(f"{row.where}, {field} {number + 1}", f"{row.key}.{number + 1}", values))
    return single


def _read_file(path: Path, source: Source, torn: Callable[[Fault], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix not in ROW_SUFFIXES:
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'} as rows; use {', '.join(ROW_SUFFIXES)}"
            + ("; export a sheet as .csv" if suffix in _SPREADSHEETS else "")
        )
    if suffix == ".parquet":
        size_of(path, source.file_mb)
        return _read_parquet(path, source.file_mb)
    text = decode(read_file(path, source.file_mb), str(path), source.encoding, settable=True)
    if suffix == ".json":
        return _read_json(path, text, torn)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, text, "\t" if suffix == ".tsv" else None, torn)
    return _read_jsonl(path, text, torn)


def _read_jsonl(path: Path, text: str, torn: Callable[[Fault], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(): U+2028 and form feeds are legal inside JSON strings.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == 1 and line.lstrip().startswith("["):
                raise DataError(
                    f"{path}: looks like one JSON list; rename it to .json or write one object a line"
                ) from None
            problem = f"not valid JSON ({_json_fault(error)}); fix or remove this line"
        else:
            if isinstance(row, dict):
                yield number, row
                continue
            problem = _no_object(row)
        torn(Fault(f"{path.stem}:{number}", f"{path}:{number}: {problem}", "not valid JSON"))


def _no_object(row: Any) -> str:
    return f"a row must be a JSON object, this is {kind_of(row)}; fix or remove it"


def _json_fault(error: Exception) -> str:
    """What is wrong with a JSON text, such as bad syntax, huge numbers or deep nesting."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def _read_json(path: Path, text: str, torn: Callable[[Fault], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); one object a line? use .jsonl") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({_json_fault(error)}); fix the file") from None
    if not isinstance(rows, list) or not any(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: a .json source must be a list of objects; or use one object a line in .jsonl")
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield number, row
        else:
            torn(Fault(f"{path.stem}:{number}", f"{path}:{number}: {_no_object(row)}", "not valid JSON"))


def _read_parquet(path: Path, limit_mb: int) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A single file, also below folders named like partitions ("lang=en"), read in batches, since a small file may
        # unpack to more than the memory.
        file = pq.ParquetFile(path)
        parts, size = [], 0
        for part in file.iter_batches(batch_size=1000):
            size += part.nbytes
            check_size(path, size, limit_mb)
            parts.append(part)
        table = pa.Table.from_batches(parts, schema=parts[0].schema if parts else file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}; write the file again"
        ) from error
    names = table.column_names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: has more than one column `{'`, `'.join(repeated)}`; rename or drop all but one")
    columns: list[list[Any]] = []
    for name in names:
        try:
            columns.append(table[name].to_pylist())
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: column `{name}` holds a value that cannot be read ({error}); fix or drop the column"
            ) from error
    return enumerate([dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)], 1)


def _read_csv(
    path: Path, text: str, delimiter: str | None, torn: Callable[[Fault], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    if "\0" in text:
        raise DataError(f"{path}: holds NUL bytes, so it is not CSV text; export it again as CSV in UTF-8")
    # Spreadsheets write whole documents into one cell; the module's limit is 128 KiB.
    csv.field_size_limit(2**31 - 1)
    used = delimiter or _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=used, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if names is None and start == 1 and _SEPARATOR_LINE.match(used.join(cells)):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                repeated = sorted({n for n in names if n and names.count(n) > 1})
                if repeated:
                    raise DataError(f"{path}:{start}: the header names {', '.join(repeated)} twice")
                continue
            if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
                message = (
                    f"{path}:{start}: {plural(len(cells), 'cell')} under {plural(len(names), 'header')}; quote "
                    "cells that hold "
                    f"{used!r} (a list of choices goes in one cell as JSON)"
                )
                torn(Fault(f"{path.stem}:{start}", message, "more cells than headers"))
                continue
            yield start, {n: c for n, c in zip(names, cells, strict=False) if n and c != ""}
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not valid CSV ({error}); close every quote, and double those inside a cell"
        ) from None


def _delimiter(text: str) -> str:
    """The separator: from Excel's line `sep=;`, else the most frequent one of the header, outside quotes.

    Spreadsheets in much of Europe use semicolons.
    """
    stated = _SEPARATOR_LINE.match(text)
    if stated is not None:
        return stated.group(1)
    header = _QUOTED.sub("", text[:_HEADER_CHARACTERS].lstrip("\r\n")).lstrip("\r\n").splitlines()
    return max(",;\t|", key=header[0].count) if header else ","


def _column_problems(name: str, source: Source, columns: set[str]) -> list[str]:
    problems = []
    for field, mapping in (("columns", source.columns), ("where", {k: k for k in source.where})):
        for ours, theirs in mapping.items():
            if field == "columns" and theirs.startswith(LITERAL_PREFIX):
                continue
            for column in [theirs] if theirs in columns else [part.strip() for part in theirs.split(",")]:
                if column not in columns and column.split(".")[0] not in columns:
                    hint = did_you_mean(column, columns, f"columns there: {', '.join(sorted(columns))}", cutoff=0.5)
                    problems.append(f"{name}: {field}.{ours}: there is no column `{column}`; {hint}")
    return problems


def _mapped(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    values = {name: _clean(value) for name, value in row.items()}
    values.update({ours: _clean(_column(row, theirs)) for ours, theirs in columns.items()})
    return {name: value for name, value in values.items() if value is not None}


def _column(row: dict[str, Any], name: str) -> Any:
    """The value of a column; `a,b` makes a list out of several columns, `=value` is the value itself."""
    if name.startswith(LITERAL_PREFIX):
        return name.removeprefix(LITERAL_PREFIX).strip()
    if name in row or "," not in name:
        return _reach(row, name)
    parts = [_reach(row, part.strip()) for part in name.split(",")]
    return [part for part in parts if part is not None]


def _reach(value: Any, name: str) -> Any:
    """The value of a dotted name; lists on the way are mapped over."""
    if isinstance(value, list):
        return [_reach(item, name) for item in value]
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    first, _, rest = name.partition(".")
    return _reach(value.get(first), rest) if rest else None


def _clean(value: Any) -> Any:
    """Replaces NaN, which tables have in empty cells, by None."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _kept(row: dict[str, Any], where: dict[str, str]) -> bool:
    def same(value: Any, wanted: str) -> bool:
        return str(value).lower() == wanted.lower() if isinstance(value, bool) else str(value) == wanted

    return all(same(_reach(row, column), wanted) for column, wanted in where.items())
