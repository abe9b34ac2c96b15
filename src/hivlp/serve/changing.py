"""The routes that change an index: items, and jobs with their progress."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hivlp.data.kinds import PICTURE_SUFFIXES, kind_of_content
from hivlp.files.scratch import write_whole
from hivlp.serve.asking import decoded, index_of, is_form, read_form, read_json, service_of
from hivlp.serve.errors import RequestError, bad_request, forbidden, not_found
from hivlp.serve.items import in_thread
from hivlp.serve.models import Ids, NewItems, NewJob, Uploads, decoder
from hivlp.serve.originals import MEDIA_TYPES
from hivlp.serve.replies import json_reply
from hivlp.serve.served import Served

SUFFIXES = {"JPEG": ".jpg", "JPEG XL": ".jxl", "RAW": ".dng", "video": ".mp4", "TIFF": ".tif"}
ITEMS, JOBS, IDS, UPLOADS = decoder(NewItems), decoder(NewJob), decoder(Ids), decoder(Uploads)


def changed_index(request: Request) -> Served:
    """The index that a request wants to change.

    Raises:
        RequestError: if it may not be changed.
    """
    served = index_of(request)
    if not served.writable:
        raise forbidden(f"{served.name} is served read-only")
    return served


async def add_items(request: Request) -> Response:
    """``POST /items``: pictures that are uploaded, or lie beneath the roots; or vectors."""
    served = changed_index(request)
    writer = service_of(request).writer(served)
    if not is_form(request):
        wanted = await read_json(request, ITEMS)
        if bool(wanted.paths) == bool(wanted.vectors):
            raise bad_request("give either paths or vectors")
        if wanted.vectors:
            vectors = [msgspec.structs.asdict(vector) for vector in wanted.vectors]
            return json_reply(await writer.change("vectors", vectors=vectors))
        paths = await in_thread(request, allowed_paths, served, wanted.paths)
        return json_reply(await writer.change("add", paths=paths))
    asked, files, names = await read_form(request)
    told = decoded(asked, UPLOADS)
    if not files:
        raise bad_request("the request has no file")
    unknown = ({*told.captions} | {*told.metadata}) - {*names.values()}
    if unknown:
        raise bad_request(f"captions and metadata go by the names of the files: {min(unknown)!r:.80} is none of them")
    places = {part: await in_thread(request, _stored, served, files[part], names[part]) for part in files}
    captions = {places[part]: told.captions[name] for part, name in names.items() if name in told.captions}
    metadata = {places[part]: told.metadata[name] for part, name in names.items() if name in told.metadata}
    result = await writer.change("add", paths=list(places.values()), captions=captions, metadata=metadata)
    return json_reply(result)


def _stored(served: Served, data: bytes, name: str) -> str:
    """The path of an uploaded picture in a folder of its content's name."""
    kind = kind_of_content(data[:512])
    if kind not in MEDIA_TYPES:
        raise RequestError(415, "not_a_picture", "a file is not a picture that is read")
    stem = re.sub(r"[^\w. -]", "_", PurePath(name.replace("\\", "/")).name).strip(". ")
    stem = stem.encode()[:100].decode(errors="ignore") or "picture"  # file systems count bytes
    if PurePath(stem).suffix.lower() not in PICTURE_SUFFIXES:
        stem += SUFFIXES.get(kind, f".{kind.lower()}")
    place = served.uploads / hashlib.sha256(data).hexdigest()[:32] / stem
    if os.path.realpath(place) != os.fspath(place):
        raise forbidden("there is a link where uploads would be stored")
    if not place.exists():
        try:
            write_whole(place, lambda scratch: scratch.write_bytes(data))
        except OSError as error:
            raise RequestError(507, "not_stored", f"the picture cannot be stored: {error.strerror}") from error
    return os.fspath(place)


def allowed_paths(served: Served, paths: Sequence[str]) -> list[str]:
    """Real paths beneath the roots.

    Raises:
        RequestError: if one is not there, or elsewhere; which of the two is not told.
    """
    found = []
    for path in paths:
        if "\0" in path or not Path(path).is_absolute():
            raise bad_request("a path is the whole path of a file or folder on the service's machine")
        real = os.path.realpath(path)
        if not served.is_beneath_roots(real):
            raise forbidden(f"{path!r:.200} is not beneath the roots: start the service with --root to index it")
        if not os.path.lexists(real):
            raise not_found(f"{path!r:.200} is not there")
        found.append(real)
    return found


async def remove_item(request: Request) -> Response:
    """``DELETE /items/{id}``."""
    return await _removed(request, [request.path_params["id"]])


async def remove_items(request: Request) -> Response:
    """``DELETE /items``."""
    return await _removed(request, (await read_json(request, IDS)).ids)


async def _removed(request: Request, ids: list[int]) -> Response:
    served = changed_index(request)

    def unknown() -> list[int]:
        with served.index.store.reading() as reader:
            return [each for each in ids if reader.get(each) is None]

    if missing := await in_thread(request, unknown):
        raise not_found(f"{served.name} has no item {missing[0]}")
    return json_reply(await service_of(request).writer(served).change("remove", ids=ids))


async def add_job(request: Request) -> Response:
    """``POST /jobs``."""
    served = changed_index(request)
    wanted = await read_json(request, JOBS)
    if served.index.maps is not None:
        raise bad_request(f"{served.name} holds given vectors: folders of pictures cannot be added to it")
    paths = await in_thread(request, allowed_paths, served, wanted.paths)
    job = service_of(request).jobs(served).add(paths, prune=wanted.prune)
    return json_reply(job.to_json(), 201)


async def list_jobs(request: Request) -> Response:
    """``GET /jobs``."""
    jobs = service_of(request).jobs(index_of(request)).all()
    return json_reply({"jobs": [job.to_json() for job in jobs]})


async def get_job(request: Request) -> Response:
    """``GET /jobs/{job}``."""
    job = service_of(request).jobs(index_of(request)).get(request.path_params["job"])
    return json_reply(job.to_json())


async def job_events(request: Request) -> Response:
    """``GET /jobs/{job}/events``: server-sent events."""
    jobs = service_of(request).jobs(index_of(request))
    events = jobs.events(jobs.get(request.path_params["job"]))
    return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})  # of nginx


async def steer_job(request: Request) -> Response:
    """``POST /jobs/{job}/pause``, ``resume`` and ``cancel``."""
    jobs = service_of(request).jobs(changed_index(request))
    job = await jobs.steer(jobs.get(request.path_params["job"]), request.scope["path"].rpartition("/")[2])
    return json_reply(job.to_json())
