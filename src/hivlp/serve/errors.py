"""Errors of requests, and the status and code that each error of the library has in HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from hivlp.errors import DamagedIndexError, HivlpError, IndexFolderError, MissingExtraError, ModelError


class RequestError(HivlpError):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        code: word for programs.
        headers: that go with it.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})


def not_found(message: str) -> RequestError:
    """What is asked for is not there."""
    return RequestError(HTTPStatus.NOT_FOUND, "not_found", message)


def bad_request(message: str) -> RequestError:
    """A request that makes no sense."""
    return RequestError(HTTPStatus.BAD_REQUEST, "bad_request", message)


def forbidden(message: str) -> RequestError:
    """A request that is not allowed, whoever asks."""
    return RequestError(HTTPStatus.FORBIDDEN, "forbidden", message)


def busy(message: str, seconds: int = 1) -> RequestError:
    """More is asked than can be answered; it may be asked again after so many seconds."""
    return RequestError(HTTPStatus.TOO_MANY_REQUESTS, "busy", message, {"Retry-After": str(seconds)})


def as_request_error(error: Exception) -> RequestError | None:
    """An error as it is told to whoever asked; None for what only the log may know."""
    match error:
        case RequestError():
            return error
        case msgspec.DecodeError():  # of which a ValidationError is one
            return bad_request(str(error))
        case DamagedIndexError():
            return RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "damaged_index", str(error))
        case IndexFolderError() if "is being written" in str(error):
            return RequestError(HTTPStatus.CONFLICT, "being_written", str(error), {"Retry-After": "5"})
        case IndexFolderError() | ModelError():
            return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(error))
        case MissingExtraError():
            return RequestError(HTTPStatus.NOT_IMPLEMENTED, "not_installed", str(error))
        case HivlpError():
            return bad_request(str(error))
    return None


def error_body(error: RequestError) -> bytes:
    """The JSON that an error is told in: one line, and text that every decoder reads."""
    line = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode({"error": {"code": error.code, "message": line}})
