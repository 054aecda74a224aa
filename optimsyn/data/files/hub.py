"""Rows of a Hugging Face hub dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optimsyn.base.errors import DataError
from optimsyn.recipe.recipe import Source


def read_hub(source: Source) -> Iterator[dict[str, Any]]:
    """The rows of one split, downloaded once and then read from the local cache.

    Raises:
        DataError: The dataset, its configuration or split does not exist, is gated, or cannot be reached.
    """
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from datasets.utils.logging import disable_progress_bar

    assert source.hub is not None
    name = source.hub
    disable_progress_bar()
    try:
        rows = load_dataset(name, source.config, split=source.split, revision=source.revision)
    except DatasetNotFoundError as error:
        raise DataError(
            f"{name}: not found on the hub, private, or gated: {_first_line(error)}. Check the spelling; for a gated "
            "dataset accept its terms on the hub and log in (`hf auth login`)"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{name}: the hub cannot be reached and the dataset is not in the local cache ({_first_line(error)}). "
            "Connect once, or export it to Parquet or JSONL and name the file as `path`"
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{name}: is a dataset of the old kind that runs a script; set `revision: refs/convert/parquet` to read "
            "the hub's own Parquet copy"
        ) from error
    except ValueError as error:
        message = _first_line(error)
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            configs = ", ".join(get_dataset_config_names(name, revision=source.revision)[:20])
            raise DataError(f"{name}: set `config` to one of: {configs}") from error
        raise DataError(f"{name}: split {source.split!r}, config {source.config!r}: {message}") from error
    except (DatasetsError, FileNotFoundError) as error:
        raise DataError(f"{name}: cannot be read ({type(error).__name__}: {_first_line(error)})") from error
    yield from (dict(row) for row in rows)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
