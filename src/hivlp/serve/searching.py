"""The route that searches."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hivlp.serve.answering import Search
from hivlp.serve.asking import decoded, index_of, is_form, picture_of, read_form, read_json, service_of
from hivlp.serve.errors import bad_request
from hivlp.serve.models import SearchRequest, decoder
from hivlp.serve.replies import json_reply
from hivlp.serve.served import Served
from hivlp.serve.service import Seen, Service

SEARCHES = decoder(SearchRequest)


async def search(request: Request) -> Response:
    """``POST /search``."""
    service, served = service_of(request), index_of(request)
    files: dict[str, bytes] = {}
    if is_form(request):
        asked, files, _ = await read_form(request)
        wanted = decoded(asked, SEARCHES)
    else:
        wanted = await read_json(request, SEARCHES)
    pictures = await _pictures(service, served, wanted, files) if isinstance(wanted.query, list) else {}
    return json_reply(await service.search(served, Search(served, wanted, pictures)))


async def _pictures(service: Service, served: Served, wanted: SearchRequest, files: dict[str, bytes]) -> dict[int, Any]:
    """The vectors of the terms that are pictures, by their places."""
    found: dict[int, Any] = {}
    for place, term in enumerate(wanted.query if isinstance(wanted.query, list) else ()):
        if term.upload is not None:
            if term.upload not in files:
                raise bad_request(f"the request has no file part {term.upload!r:.80}")
            found[place] = await service.pictures.do(Seen(served, files[term.upload]))
        elif term.image is not None:
            found[place] = await service.pictures.do(Seen(served, await picture_of(service, term.image)))
    return found
