"""The small public client: write points, read points.

>>> with Client("https://ingest1", token="…", ca_file="ca.pem") as client:   # doctest: +SKIP
...     client.write([Reading("station-1", 1700000000000, "no2", 12.5)])
...     for reading in client.read("station-1", start=1699999999000, end=1700000001000):
...         print(reading)
"""

from __future__ import annotations

import bisect
import json
import random
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import accumulate
from types import TracebackType
from typing import Any, NamedTuple

import httpx

__all__ = ["Client", "Reading", "Refused", "RequestFailed", "Written"]


class Reading(NamedTuple):
    """One point. ``flag`` and ``tests`` are set on reading only."""

    sensor: str
    time_ms: int
    metric: str
    value: float | str
    flag: int | None = None
    tests: tuple[str, ...] = ()


class Written(NamedTuple):
    """What a write's answer promises: ``stored`` or ``spooled``, and what was collapsed."""

    durability: str
    collapsed: int


class RequestFailed(Exception):  # noqa: N818
    """The service could not be reached, or answered with an error; ``status`` is 0 if it did not answer."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Refused(RequestFailed):
    """Some readings were refused and all others kept: ``errors`` are (index of the reading, reason)."""

    def __init__(self, message: str, *, errors: tuple[tuple[int, str], ...]) -> None:
        super().__init__(message, status=400)
        self.errors = errors


class Client:
    """Thread-safe. Writes are retried while nothing is promised: keys repeat, so that does no harm."""

    def __init__(
        self,
        url: str,
        *,
        token: str,
        ca_file: str | None = None,
        timeout_s: float = 30.0,
        retry_for_s: float = 60.0,
    ) -> None:
        verify: Any = ssl.create_default_context(cafile=ca_file) if ca_file else True
        self._retry_for_s = retry_for_s
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Token {token}"},
            verify=verify,
            timeout=timeout_s,
            trust_env=ca_file is None,
        )

    def write(self, readings: Iterable[Reading]) -> Written:
        """Write readings; returns when they are acknowledged.

        Raises:
            Refused: some were refused, all others are kept.
            RequestFailed: nothing is promised; the same call may be repeated.
        """
        lines = list(map(_line, readings))
        body = "\n".join(lines).encode()
        response = self._send("POST", "/api/v2/write", params={"precision": "ms"}, content=body)
        if response.status_code == 400:
            answer = _json(response)
            # A text may hold line breaks.
            starts = list(accumulate((1 + line.count("\n") for line in lines[:-1]), initial=1))
            errors = tuple(
                (bisect.bisect_right(starts, e["line"]) - 1, e["reason"]) for e in answer.get("errors", ())
            )
            if errors:
                raise Refused(str(answer.get("message")), errors=errors)
        _check(response)
        return Written(
            response.headers.get("Fieldring-Durability", "stored"),
            int(response.headers.get("Fieldring-Collapsed", 0)),
        )

    def read(
        self, sensor: str, *, start: int | str, end: int | str, metric: str | None = None
    ) -> Iterator[Reading]:
        """Points of a sensor in [start, end), times as epoch ms or RFC 3339, as they are streamed."""
        params: dict[str, Any] = {"sensor": sensor, "start": start, "end": end, "format": "ndjson"}
        if metric is not None:
            params["metric"] = metric
        count = 0
        try:
            with self._http.stream("GET", "/v1/points", params=params) as response:
                if response.status_code != 200:
                    response.read()
                    _check(response)
                for line in response.iter_lines():
                    row = json.loads(line)
                    if "sensor" not in row:
                        if row.get("count") != count:
                            break
                        return
                    count += 1
                    yield _reading(row)
        except (httpx.HTTPError, ValueError) as error:
            raise RequestFailed(f"reading failed after {count} points: {error}") from error
        raise RequestFailed(f"the answer ended after {count} points without its count: read again")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        deadline = time.monotonic() + self._retry_for_s
        pause = 0.25
        while True:
            wait = pause * random.uniform(0.5, 1.5)
            try:
                response = self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                if time.monotonic() + wait > deadline:
                    raise RequestFailed(f"{self._http.base_url} cannot be reached: {error}") from error
            else:
                if response.status_code not in (429, 502, 503, 504):
                    return response
                asked = response.headers.get("Retry-After", "")
                wait = max(wait, float(asked)) if asked.isdigit() else wait
                if time.monotonic() + wait > deadline:
                    return response
            time.sleep(wait)
            pause = min(pause * 2, 10.0)


def _escape(text: str) -> str:
    if "\n" in text or "\r" in text or text.endswith("\\"):
        raise ValueError(f"name {text!r} cannot be written: it has a line break or ends in a backslash")
    return text.replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")


def _line(reading: Reading) -> str:
    metric = reading.metric.replace(",", "\\,").replace(" ", "\\ ")
    if not metric or metric.endswith("\\") or "\n" in metric or metric.startswith("#"):
        raise ValueError(f"metric {reading.metric!r} cannot be written")
    if isinstance(reading.value, str):
        value = '"' + reading.value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    else:
        value = repr(float(reading.value))
    return f"{metric},sensor={_escape(reading.sensor)} value={value} {reading.time_ms}"


def _reading(row: Mapping[str, Any]) -> Reading:
    moment = row["time"]
    if isinstance(moment, str):
        moment = round(datetime.fromisoformat(moment).timestamp() * 1000)
    return Reading(row["sensor"], moment, row["metric"], row["value"], row["flag"], tuple(row["tests"]))


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _check(response: httpx.Response) -> None:
    if response.status_code >= 400:
        message = _json(response).get("message") or response.text[:200] or response.reason_phrase
        raise RequestFailed(f"HTTP {response.status_code}: {message}", status=response.status_code)
