"""Every error of the service, drawn as one tree.

::

    FieldringError
    ├── ClientError                 the caller's fault: retrying the same request cannot help
    │   ├── InvalidRequest          400  malformed parameter or body; ``lines`` names what was refused
    │   ├── Unauthorized            401  no token, or one that is not known
    │   ├── Forbidden               403  the token lacks the role or the sensor
    │   ├── NotFound                404  no such sensor or page
    │   ├── MethodNotAllowed        405  another method on a known path
    │   ├── RequestTimeout          408  the body stalled; nothing was kept
    │   ├── TooLarge                413  body over a limit; nothing was kept
    │   ├── UnsupportedMediaType    415  a body or version that we do not speak
    │   └── HeadTooLarge            431  request line and headers over a limit; nothing was read
    ├── Overloaded                  429  the caller's quota is used up: retry after ``retry_after_s``
    └── Unavailable                 503  our side cannot do it now: retry everything later
        ├── StoreUnavailable             the store, or a part of it, cannot take or give data
        ├── SpoolFull                    no room to promise anything
        └── BudgetExceeded               the process's memory budget is taken
    ConfigurationError                   the operator's fault: name, found value and remedy in the text
    CorruptionError                      bytes on disk or wire that fail their own checksum

``http.errors`` holds the only map from these to answers.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BudgetExceeded",
    "ClientError",
    "ConfigurationError",
    "CorruptionError",
    "FieldringError",
    "Forbidden",
    "HeadTooLarge",
    "InvalidRequest",
    "LineError",
    "MethodNotAllowed",
    "NotFound",
    "Overloaded",
    "RequestTimeout",
    "SpoolFull",
    "StoreUnavailable",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMediaType",
]


@dataclass(frozen=True, slots=True)
class LineError:
    """One refused line or record of a request.

    ``line`` counts from 1, comments and blank lines included (records of a SenML pack likewise).
    """

    line: int
    reason: str


class FieldringError(Exception):
    """Base of everything this service raises on purpose."""

    status = 500
    code = "internal"


class ClientError(FieldringError):
    """The request is at fault; the same request will fail again."""

    status = 400
    code = "invalid"


class InvalidRequest(ClientError):
    """A parameter or body that cannot be understood."""

    def __init__(self, message: str, *, lines: tuple[LineError, ...] = ()) -> None:
        super().__init__(message)
        self.lines = lines


class Unauthorized(ClientError):
    """No token, or one that is not known."""

    status = 401
    code = "unauthorized"


class Forbidden(ClientError):
    """The token is known but may not do this."""

    status = 403
    code = "forbidden"


class NotFound(ClientError):
    """What was asked for does not exist, or the token may not see it."""

    status = 404
    code = "not found"


class MethodNotAllowed(ClientError):
    """A method that this path does not know; ``allowed`` are those that it does."""

    status = 405
    code = "method not allowed"

    def __init__(self, method: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not offered here, only {', '.join(allowed)}")
        self.allowed = allowed


class RequestTimeout(ClientError):
    """The request's body stalled; nothing of it was kept."""

    status = 408
    code = "request timeout"


class TooLarge(ClientError):
    """A body over a limit; nothing of it was kept."""

    status = 413
    code = "request too large"


class UnsupportedMediaType(ClientError):
    """A content type or protocol version that is not spoken here."""

    status = 415
    code = "unsupported media type"


class HeadTooLarge(ClientError):
    """Request line and headers over a limit; nothing of the request was read."""

    status = 431
    code = "request too large"


class _Retryable(FieldringError):
    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(_Retryable):
    """The caller's quota is used up."""

    status = 429
    code = "too many requests"


class Unavailable(_Retryable):
    """Our side cannot do it now; nothing is promised, retry all."""

    status = 503
    code = "unavailable"


class StoreUnavailable(Unavailable):
    """The store, or a part of it, cannot take or give data now.

    A login refused by the ring counts as this: when too few replicas of ``system_auth`` answer,
    Cassandra says "bad credentials".
    """


class SpoolFull(Unavailable):
    """The spool's disk or limit is exhausted."""


class BudgetExceeded(Unavailable):
    """The process-wide byte budget for request bodies is taken."""


class ConfigurationError(FieldringError):
    """A setting or file of the operator's is wrong; the text says which, what was found and what to do."""


class CorruptionError(FieldringError):
    """Bytes that fail their own checksum or framing."""
