"""A fuzzer driven by the served OpenAPI document: whatever is sent, the answer is a described one."""

from __future__ import annotations

import gzip
import json
import os
import random
from typing import Any

import cbor2
import cramjam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiving import Service, remote_write_message

from fieldring.model import Batch, Row
from fieldring.web.openapi import document
from fieldring.wire import block

T = 1_700_000_000_000
# Always the same examples in a quick run, which is not to fail for luck; more and other ones in a full one.
FULL = bool(os.environ.get("FIELDRING_TEST_FULL"))
EXAMPLES = 250 if FULL else 25
Json = dict[str, Any]

OPERATIONS = [
    (path, method)
    for path, item in document()["paths"].items()
    for method, operation in item.items()
    if "write" in operation["tags"]
]
HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)
NUMBERS = st.floats() | st.integers(-(10**20), 10**20) | st.sampled_from([0, T, T / 1000, 2**28, 1e300])
TEXTS = st.text(max_size=8) | st.sampled_from(["a", "a/b", "nan", "12.5", "urn:dev:ow:10e2073a01080063:v"])
ANYTHING = st.none() | st.booleans() | NUMBERS | TEXTS | st.lists(TEXTS, max_size=2)


def resolve(schema: Json) -> Json:
    while "$ref" in schema:
        found: Any = document()
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def of_schema(schema: Json) -> st.SearchStrategy[Any]:
    """Values that a schema describes, and now and then one that it does not."""
    schema = resolve(schema)
    if "enum" in schema:
        return st.sampled_from(schema["enum"]) | TEXTS
    types = schema.get("type", "string")
    if isinstance(types, list):
        return st.one_of([of_schema({**schema, "type": one}) for one in types])
    simple = {
        "string": TEXTS,
        "number": NUMBERS,
        "integer": st.integers(-2, 12) | st.integers(),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    if types in simple:
        return st.one_of(simple[types], simple[types], ANYTHING)
    if types == "array":
        return st.lists(of_schema(schema["items"]), max_size=6)
    properties = {name: of_schema(one) for name, one in schema["properties"].items()}
    required = {name: properties.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=properties)


LINES = st.lists(
    st.sampled_from(
        ["m", "no2", ",", "sensor=a", "host=h", "t=1", " ", "=", "v=1", "w=2i", "x=3u", "t", "\\", '"', "\n",
         "\r\n", "#", "nan", "1e400", "é", str(T), "-1", "9" * 19, "\t", "\0", f"no2,sensor=a value=1 {T}\n"]
    ),
    max_size=30,
).map("".join)  # fmt: skip

LABELS = {"bver": -1, "bn": -2, "bt": -3, "bu": -4, "bv": -5, "bs": -6} | {
    name: number for number, name in enumerate(("n", "u", "v", "vs", "vb", "s", "t"))
}


def cbor_of(pack: Any) -> bytes:
    if isinstance(pack, list):
        pack = [{LABELS.get(k, k): v for k, v in r.items()} if isinstance(r, dict) else r for r in pack]
    return cbor2.dumps(pack)


def a_block() -> bytes:
    batch = Batch(received=T * 1000)
    for n in range(5):
        batch.append(Row(f"s{n}", T + n, ("no2", "note"), (n / 2, "x")))
    return block.encode(batch)


SERIES = remote_write_message(({"__name__": "no2", "j": "a"}, 12.0))


def bodies(media: str, schema: Json) -> st.SearchStrategy[bytes]:
    """Bodies of a content type; every one of them may also come damaged."""
    if media == "application/senml+cbor":
        pack = document()["paths"]["/api/v1/senml"]["post"]["requestBody"]["content"][
            "application/senml+json"
        ]
        whole = of_schema(pack["schema"]).map(cbor_of)
    elif media == "application/x-protobuf":
        whole = st.integers(0, 5).map(lambda n: SERIES * n)
    elif media == block.CONTENT_TYPE:
        whole = st.just(a_block())
    elif media.endswith("json"):
        whole = of_schema(schema).map(lambda value: json.dumps(value).encode())
    else:
        whole = LINES.map(str.encode)
    return st.tuples(whole, st.integers(0, 2), st.integers(0, 2**32)).map(lambda x: damaged(*x)) | st.binary(
        max_size=40
    )


def damaged(body: bytes, times: int, seed: int) -> bytes:
    chance = random.Random(seed)
    changed = bytearray(body)
    for _ in range(times if changed else 0):
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                del changed[place:]
            case 2:
                changed[place:place] = chance.randbytes(3)
            case _:
                changed += changed[place:]
        if not changed:
            break
    return bytes(changed)


@st.composite
def requests(draw: st.DrawFn, path: str, method: str) -> Json:
    operation = document()["paths"][path][method]
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in ("u", "p"):
            continue
        if not parameter.get("required") and not draw(st.booleans()):
            continue
        if parameter["in"] == "query":
            query[parameter["name"]] = str(draw(of_schema(parameter["schema"])))
        elif parameter["name"] != "Content-Encoding":
            headers[parameter["name"]] = draw(HEADER_TEXT)
    content = operation.get("requestBody", {}).get("content", {})
    body = b""
    if content:
        media = draw(st.sampled_from(sorted(content)))
        body = draw(bodies(media, content[media].get("schema", {})))
        headers["Content-Type"] = media
        encoding = draw(st.sampled_from(["gzip", "snappy", "deflate", "", "", ""]))
        if media == "application/x-protobuf" and draw(st.integers(0, 9)):
            encoding = "snappy"
        if encoding:
            headers["Content-Encoding"] = encoding
        if encoding and draw(st.integers(0, 9)):
            body = gzip.compress(body) if encoding != "snappy" else bytes(cramjam.snappy.compress_raw(body))
    return {"params": query, "headers": headers, "content": body}


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_any_request(shared: Service, path: str, method: str) -> None:
    """No crash, no 5xx, and nothing that the document does not describe."""
    described = document()["paths"][path][method]["responses"]
    seen: set[int] = set()

    @settings(max_examples=EXAMPLES, derandomize=not FULL, suppress_health_check=list(HealthCheck))
    @given(requests(path, method))
    def one(request: Json) -> None:
        answer = shared.http.request(method.upper(), path, **request)
        assert str(answer.status_code) in described, (answer.status_code, answer.text)
        assert answer.status_code < 500
        if answer.status_code >= 400 and method != "head":
            assert {"code", "message", "error", "errors"} == set(answer.json())
        seen.add(answer.status_code)

    one()
    assert len(seen) > 1 or path == "/query"
