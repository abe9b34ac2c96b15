"""Requests as they arrive: JSON, or a form of JSON and pictures; data URIs; and the index that is meant."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import Request

from hivlp.serve.errors import RequestError, bad_request, forbidden
from hivlp.serve.fetching import fetch
from hivlp.serve.served import Served
from hivlp.serve.service import Service

T = TypeVar("T")
MOST_FILES = 1000


def service_of(request: Request) -> Service:
    """The service that is asked."""
    service: Service = request.scope["state"]["service"]
    return service


def index_of(request: Request) -> Served:
    """The index that is asked."""
    return service_of(request).served(request.path_params.get("name"))


async def read_json(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """A request's JSON, checked.

    Raises:
        RequestError: if it is none, or says what it may not.
    """
    return decoded(await request.body(), decoder)


def decoded(data: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON, checked.

    Raises:
        RequestError: if it is none, or says what it may not.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise bad_request(f"the request is not as it must be: {error}") from error


async def read_form(request: Request) -> tuple[bytes, dict[str, bytes], dict[str, str]]:
    """The part ``request`` of a form, and the content and names of its files, by the names of their parts.

    Raises:
        RequestError: if it is no form, or a file is too large.
    """
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() != b"utf-8":  # a form's decoding is Python's: punycode takes minutes
        raise bad_request("a form is in UTF-8")
    most = service_of(request).settings.upload_bytes
    files: dict[str, bytes] = {}
    names: dict[str, str] = {}
    asked = b"{}"
    async with request.form(max_files=MOST_FILES, max_fields=10, max_part_size=1 << 20) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if value.size is not None and value.size > most:
                    raise RequestError(413, "too_large", f"a picture is larger than {most >> 20} MB")
                content = await value.read()
                if name == "request":
                    asked = content
                    continue
                key = name
                for count in itertools.count(len(files)):
                    if key not in files:
                        break
                    key = f"{name} {count}"
                files[key], names[key] = content, value.filename or name
            elif name == "request":
                asked = value.encode("utf-8", "surrogatepass")
    return asked, files, names


def is_form(request: Request) -> bool:
    """Whether a request is a form of several parts."""
    return request.headers.get("content-type", "").startswith("multipart/form-data")


def data_uri(text: str, most: int) -> bytes:
    """The content of a data URI.

    Raises:
        RequestError: if it is none, or too large.
    """
    head, comma, body = text.partition(",")
    if not head.startswith("data:") or not comma:
        raise bad_request("a picture is given as a data URI: data:image/jpeg;base64,…")
    if len(body) > 4 * most:
        raise RequestError(413, "too_large", f"a picture is larger than {most >> 20} MB")
    try:
        data = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise bad_request("the data URI is not base64") from error
    if len(data) > most:
        raise RequestError(413, "too_large", f"a picture is larger than {most >> 20} MB")
    return data


async def picture_of(service: Service, address: str) -> bytes:
    """The content of a picture that is given as a data URI, or where that is allowed as a public address.

    Raises:
        RequestError: if it is neither, too large, or may not be fetched.
    """
    most = service.settings.upload_bytes
    if not address.startswith(("http://", "https://")):
        return data_uri(address, most)
    if not service.settings.allow_urls:
        raise forbidden("this service fetches no addresses: send the picture, or start it with --allow-urls")
    return await asyncio.get_running_loop().run_in_executor(service.threads, fetch, address, most)


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query string.

    Raises:
        RequestError: if it is none, or out of bounds.
    """
    text: Any = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise bad_request(f"{name} is a whole number from {least} to {most}")
    return int(text)
