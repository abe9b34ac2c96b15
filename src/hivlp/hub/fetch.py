"""Fetching from the Hugging Face hub by its own client: only what is needed, pinned to a commit, its hashes checked.

What was fetched and checked is recorded in ``hub/`` of the cache folder, by repository and commit; the files themselves
are in the hub's own cache. A record makes the model usable without a network for ever after, and is the pin: a later
use of the same name takes the same commit, whatever the repository has become. ``NAME@main`` asks the hub again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.errors import MissingExtraError, ModelError
from hivlp.files.digests import cache_folder
from hivlp.files.reading import one_line
from hivlp.files.scratch import write_whole
from hivlp.formats.format import WEIGHTS, Format
from hivlp.formats.registry import choose
from hivlp.hub.names import ModelName

COMMIT = re.compile("[0-9a-f]{40}")
Choice = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Fetched:
    """A repository's files on disk.

    Attributes:
        folder: the snapshot of the commit.
        revision: the commit, 40 hex digits.
        format: of the model.
    """

    folder: Path
    revision: str
    format: Format


def fetch_model(name: ModelName) -> Fetched:
    """The files that a model needs, fetched where they are not there yet.

    Raises:
        MissingExtraError: if ``huggingface_hub`` is not installed.
        ModelError: if the hub has no such model, or it is none that hivlp can use, or cannot be fetched whole.
    """
    found: list[Format] = []

    def wanted(names: Sequence[str]) -> list[str]:
        known, files = choose(names, name.precision, name.hub_id)
        found[:] = [known]
        return files

    def check(folder: Path) -> None:
        found[0].check(folder, name.label)

    folder, revision = _fetch(name, wanted, check)
    return Fetched(folder, revision, found[0])


def fetch_files(name: ModelName, patterns: Sequence[str]) -> Path:
    """The snapshot that holds the files of these patterns.

    Raises:
        MissingExtraError: if ``huggingface_hub`` is not installed.
        ModelError: if the hub has no such repository, or they cannot be fetched whole.
    """

    def wanted(names: Sequence[str]) -> list[str]:
        files = [each for each in names if any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns)]
        safe = any(each.endswith(".safetensors") for each in files)
        return [each for each in files if not (safe and each.endswith((".bin", ".bin.index.json"))
                                               and each.startswith("pytorch_model"))]  # fmt: skip

    return _fetch(name, wanted, lambda folder: None)[0]


def _fetch(name: ModelName, wanted: Choice, check: Callable[[Path], None]) -> tuple[Path, str]:
    """The snapshot with the wanted files, and its commit."""
    before = _recorded(name)
    if before is not None:
        with suppress(ModelError):  # another precision may need files that are not there
            needed = wanted(before["names"])
            folder = Path(before["folder"])
            if set(needed) <= set(before["checked"]) and all((folder / each).is_file() for each in needed):
                return folder, str(before["revision"])
    try:
        from huggingface_hub import HfApi
        from huggingface_hub import errors as known
    except ImportError as error:
        raise MissingExtraError(f"fetching {name.hub_id} from the hub", "hub") from error
    revision = before["revision"] if before is not None else name.revision
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelError(f"{name.hub_id} has not been fetched, and HF_HUB_OFFLINE is set")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="hivlp")
    try:
        about = api.model_info(name.hub_id, revision=revision, files_metadata=True)
        files = {each.rfilename: each for each in about.siblings or []}
        needed = wanted(list(files))
        if not needed:
            raise ModelError(f"{name.hub_id} has none of the files that are needed")
        small = [each for each in needed if not each.endswith(WEIGHTS)]
        checked = dict(before["checked"]) if before is not None else {}
        folder = None
        for part in (small, [each for each in needed if each.endswith(WEIGHTS)]):
            new = [each for each in part if each not in checked or folder is None or not (folder / each).is_file()]
            if new:
                folder = _snapshot(api, name.hub_id, str(about.sha), new)
                checked |= {each: _checked(folder / each, files[each], name.hub_id) for each in new}
            if part is small and folder is not None:
                check(folder)  # before gigabytes are fetched
    except known.GatedRepoError as error:
        raise ModelError(f"{name.hub_id} is gated: accept its terms on its page of the hub, then log in "
                         "(hf auth login, or HF_TOKEN)") from error  # fmt: skip
    except known.RevisionNotFoundError as error:
        raise ModelError(f"{name.hub_id} has no revision {revision}") from error
    except known.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {name.hub_id!r} (or it is private: hf auth login), and there is no "
                         "such folder") from error  # fmt: skip
    except ModelError:
        raise
    except Exception as error:  # of the network, of the disk, of whatever the client makes of an answer
        raise ModelError(f"{name.hub_id} cannot be fetched from the hub: {one_line(error)}; what has come is kept, "
                         "try again") from error  # fmt: skip
    assert folder is not None
    _record(name, {"revision": str(about.sha), "folder": str(folder), "names": list(files), "checked": checked})
    return folder, str(about.sha)


def _snapshot(api: Any, hub_id: str, revision: str, names: Sequence[str]) -> Path:
    """These files in the hub's cache; the client shows its bars, and goes on where a transfer broke off."""
    literal = [re.sub(r"([\[\]*?])", r"[\1]", name) for name in names]
    cache = os.environ.get("HF_HUB_CACHE")
    return Path(api.snapshot_download(hub_id, revision=revision, allow_patterns=literal, cache_dir=cache))


def _checked(path: Path, about: Any, hub_id: str) -> str:
    """The hash of a file, which is the one that the hub lists.

    Raises:
        ModelError: if it is another; the file is removed, so that it is fetched anew.
    """
    large = getattr(about, "lfs", None)
    expected = large.sha256 if large is not None else about.blob_id
    with path.open("rb") as file:
        if large is not None:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            content = file.read()
            # As git names a file's content; an identity, not a protection.
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if expected is not None and found != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ModelError(f"{path.name} of {hub_id} is not what the hub lists (its hash is {found[:12]}…, not "
                         f"{expected[:12]}…); it was removed, try again")  # fmt: skip
    return found


def _place(name: ModelName) -> Path:
    return cache_folder() / "hub" / name.hub_id.replace("/", "--")


def _recorded(name: ModelName) -> Mapping[str, Any] | None:
    """What was fetched of this revision before; of the pinned one where none is named."""
    revision = name.revision
    if revision is not None and not COMMIT.fullmatch(revision):
        return None  # a branch may have moved
    try:
        if revision is None:
            revision = (_place(name) / "pinned").read_text(encoding="utf-8").strip()
        record = json.loads((_place(name) / f"{revision}.json").read_text(encoding="utf-8"))
        return record if {"revision", "folder", "names", "checked"} <= set(record) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _record(name: ModelName, record: Mapping[str, Any]) -> None:
    place = _place(name)
    text = json.dumps(record, indent=1)
    write_whole(place / f"{record['revision']}.json", lambda path: path.write_text(text, encoding="utf-8"))
    if name.revision is None or not COMMIT.fullmatch(name.revision):
        write_whole(place / "pinned", lambda path: path.write_text(str(record["revision"]), encoding="utf-8"))
