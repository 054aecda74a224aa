"""Whether a model or dataset is on the Hugging Face hub or in the local cache, without downloading it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class HubEntry:
    """A repository on the hub or in the cache.

    Attributes:
        problem: Why it cannot be used, with the cure; None when it can.
        files: Names of its files and their sizes in bytes, as far as known.
        parameters: Number of parameters, if the hub knows it.
        folder: The cached snapshot, if there is one.
        offline: The hub could not be reached, so only the cache was checked.
    """

    problem: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    parameters: int | None = None
    folder: Path | None = None
    offline: bool = False


def look_up(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> HubEntry:
    """Looks up a repository on the hub, or in the local cache where the hub cannot be reached."""
    import httpx
    from huggingface_hub import HfApi, errors

    api = HfApi()
    folder = cached_folder(kind, name, revision)
    try:
        info = api.repo_info(name, repo_type=kind, revision=revision, timeout=_TIMEOUT_S, files_metadata=True)
        if info.gated:
            api.auth_check(name, repo_type=kind)
    except errors.HFValidationError:
        return HubEntry(f"{name!r} is neither a hub id (`organisation/name`) nor a folder on this machine")
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        return HubEntry(f"{name} is gated: accept its terms at {page} and log in (`hf auth login`)")
    except errors.RevisionNotFoundError:
        return HubEntry(f"{name} has no revision {revision!r}; remove `revision` or name a branch, tag or commit")
    except errors.RepositoryNotFoundError:
        return HubEntry(
            f"the hub has no {kind} {name!r} that you may see: check the spelling, or log in (`hf auth login`) if it "
            "is private"
        )
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError, httpx.HTTPError, OSError) as error:
        if folder is not None:
            return HubEntry(folder=folder, offline=True)
        field_name = "`path`" if kind == "dataset" else "`name`"
        return HubEntry(
            f"the hub cannot be reached ({type(error).__name__}) and {name} is not in the local cache: connect once, "
            f"or give a local {'file' if kind == 'dataset' else 'folder'} as {field_name}",
            offline=True,
        )
    files = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    safetensors = getattr(info, "safetensors", None)
    return HubEntry(files=files, parameters=safetensors.total if safetensors is not None else None, folder=folder)


def cached_folder(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> Path | None:
    """The cached snapshot of a repository if it is usable, or None.

    A model needs its `config.json` and weights; for a dataset any snapshot or its prepared tables are enough.
    """
    from huggingface_hub import constants, errors, snapshot_download

    snapshot = None
    # Downloads nothing and requires no file, since a partial snapshot may hold all that is needed. `look_up` reports
    # invalid names.
    with suppress(errors.LocalEntryNotFoundError, errors.HFValidationError):
        folder = snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=[])
        snapshot = Path(folder)
    if snapshot is not None:
        weights = any(snapshot.glob("*.safetensors")) or any(snapshot.glob("*.bin"))
        if kind == "dataset" or ((snapshot / "config.json").is_file() and weights):
            return snapshot
    if kind == "dataset":
        prepared = Path(constants.HF_HOME) / "datasets" / name.replace("/", "___")
        for candidate in (prepared, prepared.with_name(prepared.name.lower())):
            if candidate.is_dir():
                return candidate
    return None
