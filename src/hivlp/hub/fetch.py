"""Fetching from the Hugging Face hub by its own client: only what is needed, pinned to a commit, its hashes checked.

The files of a commit lie in ``hub/OWNER--NAME/COMMIT`` of the cache folder, with a record of what was checked. They
make the model usable without a network for ever after, and are the pin: a later use of the same name takes the same
commit, whatever the repository has become; ``NAME@main`` asks the hub again. A transfer that broke off goes on where it
was, in another process too; what the hub's own cache holds already is linked, not fetched.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from hivlp.errors import MissingExtraError, ModelError
from hivlp.files.digests import cache_folder
from hivlp.files.reading import one_line
from hivlp.files.scratch import write_whole
from hivlp.formats.format import WEIGHTS, Format
from hivlp.formats.registry import choose
from hivlp.hub.names import ModelName

COMMIT = re.compile("[0-9a-f]{40}")
PINNED, RECORD = "pinned", ".fetched.json"
Choice = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Fetched:
    """A repository's files on disk.

    Attributes:
        folder: with those that are needed.
        revision: the commit, 40 hex digits.
        format: of the model.
    """

    folder: Path
    revision: str
    format: Format


@dataclass(frozen=True)
class Record:
    """What was fetched of a commit.

    Attributes:
        folder: where the files lie.
        revision: the commit.
        names: of all files that it has on the hub.
        checked: of those that are there, whole.
    """

    folder: Path
    revision: str
    names: tuple[str, ...]
    checked: frozenset[str]


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
    """The folder with the files of these patterns.

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
    """The folder with the wanted files of a commit, and the commit."""
    before = _recorded(name)
    if before is not None:
        with suppress(ModelError):  # another precision may need files that are not there
            if set(wanted(before.names)) <= set(before.checked):
                return before.folder, before.revision
    try:
        from huggingface_hub import HfApi
        from huggingface_hub import errors as known
    except ImportError as error:
        raise MissingExtraError(f"fetching {name.hub_id} from the hub", "hub") from error
    revision = before.revision if before is not None else name.revision
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelError(f"{name.hub_id} has not been fetched, and HF_HUB_OFFLINE is set")
    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="hivlp")
        about = api.model_info(name.hub_id, revision=revision, files_metadata=True)
        files = {each.rfilename: each for each in about.siblings or [] if _is_plain(each.rfilename)}
        needed = wanted(list(files))
        if not needed:
            raise ModelError(f"{name.hub_id} has none of the files that are needed")
        if not COMMIT.fullmatch(str(about.sha)):  # it names a folder
            raise ModelError(f"the hub names no commit of {name.hub_id}, but {str(about.sha)!r:.50}")
        folder = _place(name) / str(about.sha)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            record = _read_record(folder) or Record(folder, str(about.sha), tuple(files), frozenset())
            for each in sorted(needed, key=lambda file: file.endswith(WEIGHTS)):
                if each.endswith(WEIGHTS) and not needed[0].endswith(WEIGHTS):
                    check(folder)  # before gigabytes are fetched
                if each not in record.checked:
                    _download(name.hub_id, record.revision, files[each], folder / each)
                    record = replace(record, checked=record.checked | {each})
                    _write_record(record)
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
    if name.revision is None:
        write_whole(_place(name) / PINNED, lambda path: path.write_text(record.revision, encoding="utf-8"))
    return folder, record.revision


def _download(hub_id: str, revision: str, about: Any, path: Path) -> None:
    """A file of a commit, its hash checked.

    Raises:
        ModelError: if it has another hash than the hub lists.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    name = about.rfilename
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, expected = path.with_name(f"{path.name}.partial"), _listed(about)
    there = try_to_load_from_cache(hub_id, name, revision=revision, cache_dir=os.environ.get("HF_HUB_CACHE"))
    if isinstance(there, str) and _hash(Path(there), about) == expected:
        _link(Path(there).resolve(), path)
        return
    url = hf_hub_url(hub_id, name, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"))
    with partial.open("ab") as file:
        if file.tell() > about.size:
            file.truncate(0)
        # The client shows a bar, follows the hub to where it keeps the file, and tries again a few times.
        http_get(
            url, file, resume_size=file.seek(0, os.SEEK_END), expected_size=about.size, displayed_filename=name,
            headers=build_hf_headers(library_name="hivlp"),
        )  # fmt: skip
    found = _hash(partial, about)
    if found != expected:
        partial.unlink()
        raise ModelError(f"{name} of {hub_id} is not what the hub lists (its hash is {found[:12]}…, not "
                         f"{expected[:12]}…); it was removed, try again")  # fmt: skip
    partial.replace(path)


def _listed(about: Any) -> str:
    """The hash of a file that the hub lists: SHA-256 of a large one, git's name of a small one's content.

    Raises:
        ModelError: if it lists none.
    """
    listed = about.lfs.sha256 if about.lfs is not None else about.blob_id
    if not listed or about.size is None:
        raise ModelError(f"the hub lists no hash or no size of {about.rfilename}, so it cannot be checked")
    return str(listed)


def _hash(path: Path, about: Any) -> str:
    with path.open("rb") as file:
        if about.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        content = file.read()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _link(source: Path, path: Path) -> None:
    """The same file under another name, or a copy where the disk has no links."""
    path.unlink(missing_ok=True)
    try:
        path.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, path)


def _is_plain(name: str) -> bool:
    """Whether a listed name stays inside its folder."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not set(name) & {"\\", "\0", ":"}


def _place(name: ModelName) -> Path:
    return cache_folder() / "hub" / name.hub_id.replace("/", "--")


def _recorded(name: ModelName) -> Record | None:
    """What was fetched of this revision before; of the pinned one where none is named."""
    revision = name.revision
    if revision is None:
        with suppress(OSError, ValueError):
            revision = (_place(name) / PINNED).read_text(encoding="utf-8").strip()
    if revision is None or not COMMIT.fullmatch(revision):
        return None  # a branch may have moved
    return _read_record(_place(name) / revision)


def _read_record(folder: Path) -> Record | None:
    """What was fetched and checked; what is gone since does not count."""
    try:
        stored = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        checked = frozenset(name for name in stored["checked"] if (folder / name).is_file())
        return Record(folder, folder.name, tuple(stored["names"]), checked)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _write_record(record: Record) -> None:
    text = json.dumps({"names": record.names, "checked": sorted(record.checked)}, indent=1)
    write_whole(record.folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
