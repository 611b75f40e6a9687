"""The OpenAPI 3.1 document of all routes, of ``receive`` and ``serve`` alike; ``serve`` serves it.

A test holds it against the routes of both applications.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fieldring import __version__
from fieldring.wire import block

__all__ = ["document"]

Json = dict[str, Any]

_TIME = "Epoch milliseconds, or RFC 3339."


@cache
def document() -> Json:
    """The document; treat it as constant."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fieldring",
            "version": __version__,
            "description": "Sensor data in, judged and kept; readings out. What an answer to a write "
            "promises: 204 stored at quorum, 202 fsynced in this host's spool, 400 the named lines were "
            "refused and all others kept, 401/403/413 nothing kept, 429/503 nothing promised: retry all.",
        },
        "security": [{"token": []}, {"basic": []}],
        "tags": [
            {"name": "write", "description": "role `write`"},
            {"name": "read", "description": "role `read`, limited to the sensors that the token may see"},
            {"name": "probes"},
            {"name": "pages", "description": "for people, with a session"},
        ],
        "paths": {**_write_paths(), **_read_paths(), **_probe_paths(), **_page_paths()},
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Token T` or `Bearer T`",
                },
                "basic": {"type": "http", "scheme": "basic", "description": "the token as password"},
                "v1": {"type": "apiKey", "in": "query", "name": "p", "description": "as v1 clients send it"},
            },
            "schemas": _schemas(),
            "responses": _responses(),
            "headers": {
                "Durability": {
                    "description": "`stored`: at quorum; `spooled`: fsynced in this host's spool",
                    "schema": {"enum": ["stored", "spooled"]},
                },
                "Collapsed": {
                    "description": "Points that a later line with the same sensor, time and metric replaced",
                    "schema": {"type": "integer", "minimum": 1},
                },
                "RetryAfter": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}},
            },
        },
    }


def _schemas() -> Json:
    return {
        "Error": {
            "type": "object",
            "required": ["code", "message", "error", "errors"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "error": {"type": "string", "description": "the message again, as v1 clients read it"},
                "errors": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["line", "reason"],
                        "properties": {"line": {"type": "integer"}, "reason": {"type": "string"}},
                    },
                },
            },
        },
        "Point": {
            "type": "object",
            "required": ["time", "sensor", "metric", "value", "flag", "tests"],
            "properties": {
                "time": {"type": "string", "format": "date-time"},
                "sensor": {"type": "string"},
                "metric": {"type": "string"},
                "value": {"type": ["number", "string"]},
                "flag": {
                    "enum": [1, 2, 3, 4, 9],
                    "description": "QARTOD: good, not evaluated, suspect, fail, missing",
                },
                "tests": {"type": "array", "items": {"type": "string"}},
            },
        },
        "Points": {
            "type": "object",
            "required": ["points", "next"],
            "properties": {
                "points": {"type": "array", "items": _ref("schemas/Point")},
                "next": {"type": ["string", "null"]},
            },
        },
        "Sensor": {
            "type": "object",
            "required": ["sensor", "site", "attributes", "metrics", "first", "last"],
            "properties": {
                "sensor": {"type": "string"},
                "site": {"type": "string"},
                "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
                "metrics": {"type": "array", "items": {"type": "string"}},
                "first": {"type": "string", "format": "date-time"},
                "last": {"type": "string", "format": "date-time"},
            },
        },
        "GatewayGaps": {
            "type": "object",
            "required": ["gateway", "epochs"],
            "properties": {
                "gateway": {"type": "string"},
                "epochs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["epoch", "last", "seen", "missing", "gaps"],
                        "properties": {
                            "epoch": {"type": "string", "description": "One life of the gateway's spool"},
                            "last": {"type": "integer", "description": "The highest number that is known"},
                            "seen": {"type": "string", "format": "date-time"},
                            "missing": {"type": "integer"},
                            "gaps": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["first", "last", "count", "state"],
                                    "properties": {
                                        "first": {"type": "integer"},
                                        "last": {"type": "integer"},
                                        "count": {"type": "integer"},
                                        "state": {
                                            "enum": ["lost", "pending"],
                                            "description": "pending: the gateway may still have it",
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
        "Sensors": {
            "type": "object",
            "required": ["sensors"],
            "properties": {"sensors": {"type": "array", "items": _ref("schemas/Sensor")}},
        },
        "Health": {
            "type": "object",
            "required": ["name", "status", "checks"],
            "properties": {
                "name": {"type": "string"},
                "message": {"type": "string"},
                "status": {"enum": ["pass", "fail"]},
                "version": {"type": "string"},
                "checks": {"type": "array", "items": {"type": "object"}},
            },
        },
        "SenmlRecord": {
            "type": "object",
            "properties": {
                **{name: {"type": "string"} for name in ("bn", "bu", "n", "u", "vs")},
                **{name: {"type": "number"} for name in ("bt", "bv", "bs", "v", "s", "t")},
                "bver": {"type": "integer", "minimum": 1, "maximum": 10},
                "vb": {"type": "boolean"},
            },
        },
        "SensorCommunity": {
            "type": "object",
            "required": ["sensordatavalues"],
            "properties": {
                "software_version": {"type": "string"},
                "sensordatavalues": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["value_type", "value"],
                        "properties": {
                            "value_type": {"type": "string"},
                            "value": {"type": ["string", "number", "boolean", "null"]},
                        },
                    },
                },
            },
        },
    }


def _responses() -> Json:
    error = {"application/json": {"schema": _ref("schemas/Error")}}
    promise = {
        "Fieldring-Durability": _ref("headers/Durability"),
        "Fieldring-Collapsed": _ref("headers/Collapsed"),
    }
    retry = {"Retry-After": _ref("headers/RetryAfter")}
    return {
        "Stored": {"description": "Every point is stored and readable", "headers": promise},
        "StoredOrSpooled": {"description": "Every point is kept, as the header says", "headers": promise},
        "Spooled": {"description": "Every point is fsynced in this host's spool", "headers": promise},
        "LinesRefused": {
            "description": "The named lines were refused; all others are kept as the header says",
            "headers": promise,
            "content": error,
        },
        "Invalid": {"description": "A parameter or body that cannot be understood", "content": error},
        "Unauthorized": {
            "description": "No token, or one that is not known",
            "headers": {"WWW-Authenticate": {"schema": {"type": "string"}}},
            "content": error,
        },
        "Forbidden": {"description": "The token lacks the role or the sensor", "content": error},
        "NotFound": {"description": "There is no such thing here", "content": error},
        "Timeout": {"description": "The body stalled; nothing was kept", "content": error},
        "TooLarge": {"description": "Over a limit; nothing was kept", "content": error},
        "Unsupported": {"description": "A content type or encoding not spoken here", "content": error},
        "TooMany": {
            "description": "The token's quota is used up; nothing is promised: retry all",
            "headers": retry,
            "content": error,
        },
        "Unavailable": {"description": "Nothing is promised: retry all", "headers": retry, "content": error},
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/{name}"}


def _query(name: str, text: str, schema: Json | None = None, *, required: bool = False) -> Json:
    return {
        "name": name,
        "in": "query",
        "description": text,
        "required": required,
        "schema": schema or {"type": "string"},
    }


def _header(name: str, text: str, *, required: bool = False) -> Json:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "schema": {"type": "string"},
        "description": text,
    }


def _answers(**statuses: str) -> Json:
    """``s204="Stored"`` → the component of that name."""
    return {status[1:]: _ref(f"responses/{name}") for status, name in statuses.items()}


_GZIP = {
    "name": "Content-Encoding",
    "in": "header",
    "schema": {"enum": ["gzip", "deflate", "identity"]},
    "description": "Bodies may be gzipped",
}
_NOTHING_KEPT = {
    "s401": "Unauthorized",
    "s403": "Forbidden",
    "s408": "Timeout",
    "s413": "TooLarge",
    "s415": "Unsupported",
    "s429": "TooMany",
    "s503": "Unavailable",
}


def _write(
    summary: str,
    body: Json,
    *,
    parameters: list[Json] | None = None,
    v1: bool = False,
    encoding: Json = _GZIP,
    quota: bool = True,
) -> Json:
    nothing_kept = dict(_NOTHING_KEPT)
    if not quota:
        del nothing_kept["s429"]
    kept = {"s204": "StoredOrSpooled"} if v1 else {"s204": "Stored", "s202": "Spooled"}
    return {
        "post": {
            "tags": ["write"],
            "summary": summary,
            "parameters": [*(parameters or []), encoding],
            "requestBody": {"required": True, "content": body},
            "responses": _answers(**kept, s400="LinesRefused", **nothing_kept),
            **({"security": [{"token": []}, {"basic": []}, {"v1": []}]} if v1 else {}),
        }
    }


def _write_paths() -> Json:
    lines = {"text/plain": {"schema": {"type": "string"}, "example": "no2,sensor=station-1 value=12.5"}}
    any_name = "Taken and ignored"

    def precision(*units: str) -> Json:
        return _query("precision", "Unit of time stamps; ns if not given", {"enum": list(units)})

    return {
        "/write": _write(
            "InfluxDB line protocol, v1 clients",
            lines,
            parameters=[
                _query("db", any_name),
                _query("rp", any_name),
                precision("n", "ns", "u", "us", "µ", "ms", "s", "m", "h"),
                _query("u", "User, ignored"),
                _query("p", "Token"),
            ],
            v1=True,
        ),
        "/api/v2/write": _write(
            "InfluxDB line protocol, v2 clients",
            lines,
            parameters=[
                _query("org", any_name),
                _query("bucket", any_name),
                precision("ns", "us", "ms", "s"),
            ],
        ),
        "/api/v1/senml": _write(
            "SenML (RFC 8428) in JSON or CBOR",
            {
                "application/senml+json": {"schema": {"type": "array", "items": _ref("schemas/SenmlRecord")}},
                "application/senml+cbor": {"schema": {"type": "string", "format": "binary"}},
            },
        ),
        "/api/v1/block": _write(
            "A gateway's block",
            {block.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
            parameters=[
                _header(
                    "Fieldring-Source",
                    "`<gateway>;epoch=<e>;seq=<n>;count=<k>`; the token must be the gateway's",
                )
            ],
        ),
        "/v1/push-sensor-data/": _write(
            "sensor.community, as the airRohr firmware's own API. Devices on the site's list need no token",
            {"application/json": {"schema": _ref("schemas/SensorCommunity")}},
            parameters=[_header("X-Sensor", "The device", required=True), _header("X-PIN", "Its sensor")],
        ),
        "/api/v1/write": _write(
            "Prometheus remote write 1.0. A used-up quota is 503 here, as Prometheus does not retry 429",
            {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}},
            encoding={
                "name": "Content-Encoding",
                "in": "header",
                "required": True,
                "schema": {"enum": ["snappy"]},
                "description": "snappy's block format",
            },
            quota=False,
        ),
        "/query": {
            method: {
                "tags": ["write"],
                "summary": "`show databases` and `create database`, which v1 clients ask first",
                "parameters": [
                    _query("q", "The statement"),
                    _query("u", "User, ignored"),
                    _query("p", "Token"),
                ],
                "responses": {
                    "200": {"description": "v1's answer", "content": {"application/json": {}}},
                    **_answers(
                        s400="Invalid",
                        s401="Unauthorized",
                        s408="Timeout",
                        s413="TooLarge",
                        s503="Unavailable",
                    ),
                },
                "security": [{"token": []}, {"basic": []}, {"v1": []}],
            }
            for method in ("get", "post")
        },
    }


def _read(summary: str, schema: str, *, parameters: list[Json] | None = None, **content: Json) -> Json:
    return {
        "get": {
            "tags": ["read"],
            "summary": summary,
            "parameters": parameters or [],
            "responses": {
                "200": {
                    "description": "What was asked for",
                    "content": {"application/json": {"schema": _ref(f"schemas/{schema}")}, **content},
                },
                **_answers(
                    s400="Invalid", s401="Unauthorized", s403="Forbidden", s404="NotFound", s503="Unavailable"
                ),
            },
        }
    }


def _read_paths() -> Json:
    csv = {"text/csv": {"schema": {"type": "string"}}}
    points = _read(
        "Points of a sensor with their flags, in the order of time and metric",
        "Points",
        parameters=[
            _query("sensor", "The sensor", required=True),
            _query("metric", "One metric only"),
            _query("start", f"{_TIME} Included."),
            _query("end", f"{_TIME} Excluded."),
            _query("flags", "Only points with these flags, as in `3,4`"),
            _query("format", "json if not given", {"enum": ["json", "ndjson", "csv"]}),
            _query(
                "limit",
                "Points per page; without it all are streamed",
                {"type": "integer", "minimum": 1, "maximum": 100_000},
            ),
            _query("cursor", "`next` of the page before; needs a limit"),
        ],
    )
    points["get"]["responses"]["200"]["content"] |= {
        **csv,
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "example": '{"time":"2024-01-01T00:00:00.000Z",…}\n{"count":1,"next":null}\n',
        },
    }
    sensors = _read(
        "All sensors that the token may see, by name",
        "Sensors",
        parameters=[_query("format", "json if not given", {"enum": ["json", "csv"]})],
    )
    sensors["get"]["responses"]["200"]["content"] |= csv
    rules = _read("The quality rules in force", "Error")
    rules["get"]["responses"]["200"]["content"] = {"application/json": {"schema": {"type": "object"}}}
    itself = {
        "get": {
            "tags": ["read"],
            "summary": "This document",
            "security": [],
            "responses": {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {}}}},
        }
    }
    return {
        "/v1/points": points,
        "/v1/sensors": sensors,
        "/v1/sensors/{sensor}": _read("One sensor", "Sensor", parameters=[_path("sensor")]),
        "/v1/gateways/{gateway}/gaps": _read(
            "Blocks of a gateway that never arrived", "GatewayGaps", parameters=[_path("gateway")]
        ),
        "/v1/rules": rules,
        "/openapi.json": itself,
    }


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _probe_paths() -> Json:
    def probe(summary: str, *, schema: Json, down: bool = True) -> Json:
        content = {"application/json": {"schema": schema}}
        answers: Json = {"200": {"description": "Yes", "content": content}}
        if down:
            answers["503"] = {"description": "No", "content": content}
        return {"get": {"tags": ["probes"], "summary": summary, "security": [], "responses": answers}}

    ping = {
        "tags": ["probes"],
        "summary": "Is anybody there",
        "security": [],
        "responses": {
            "204": {
                "description": "Yes",
                "headers": {"X-Influxdb-Version": {"schema": {"type": "string"}}},
            }
        },
    }
    return {
        "/ping": {"get": ping, "head": ping},
        "/health": probe("InfluxDB v2's health", schema=_ref("schemas/Health")),
        "/ready": probe("Whether this process can do its work now", schema={"type": "object"}),
        "/metrics": {
            "get": {
                "tags": ["probes"],
                "summary": "For Prometheus: a read token, or the monitor's client certificate",
                "responses": {
                    "200": {"description": "Text format 0.0.4", "content": {"text/plain": {}}},
                    **_answers(s401="Unauthorized", s403="Forbidden"),
                },
            }
        },
    }


def _page_paths() -> Json:
    def page(summary: str, *, parameters: list[Json] | None = None, **more: str) -> Json:
        return {
            "tags": ["pages"],
            "summary": summary,
            "security": [],
            "parameters": parameters or [],
            "responses": {
                "200": {"description": "A page", "content": {"text/html": {}}},
                **{
                    status[1:]: {"description": text, "content": {"text/html": {}}}
                    for status, text in more.items()
                },
            },
        }

    sign_in = "Not signed in: to /sign-in"
    form = {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "properties": {"token": {"type": "string"}, "next": {"type": "string"}},
                }
            }
        },
    }
    chart = [_query("metric", "Which metric"), _query("range", "How far back")]
    back = {"303": {"description": "Done, to the next page"}, "400": {"description": "The form is not ours"}}
    return {
        "/": {
            "get": {"tags": ["pages"], "security": [], "responses": {"302": {"description": "To /sensors"}}}
        },
        "/sign-in": {
            "get": page("The form to sign in with a token"),
            "post": {
                "tags": ["pages"],
                "summary": "Sign in",
                "security": [],
                "requestBody": form,
                "responses": {**back, "403": {"description": "The token is not known, or may not read"}},
            },
        },
        "/sign-out": {"post": {"tags": ["pages"], "summary": "Sign out", "security": [], "responses": back}},
        "/sensors": {"get": page("All sensors with their freshness", s303=sign_in)},
        "/sensors/{sensor}": {
            "get": page(
                "A sensor's chart with its flags",
                parameters=[_path("sensor"), *chart],
                s303=sign_in,
                s403="Not this token's",
                s404="No such sensor",
            )
        },
        "/chart": {
            "get": page(
                "The same for names that a path cannot carry",
                parameters=[_query("sensor", "The sensor", required=True), *chart],
                s303=sign_in,
                s403="Not this token's",
                s404="No such sensor",
            )
        },
        "/assets/dygraphs/{name}": {
            "get": {
                "tags": ["pages"],
                "summary": "The chart library",
                "security": [],
                "parameters": [_path("name")],
                "responses": {"200": {"description": "A file"}, "404": {"description": "No such file"}},
            }
        },
        "/static/{filename}": {
            "get": {
                "tags": ["pages"],
                "summary": "Scripts and styles",
                "security": [],
                "parameters": [_path("filename")],
                "responses": {"200": {"description": "A file"}, "404": {"description": "No such file"}},
            }
        },
    }
