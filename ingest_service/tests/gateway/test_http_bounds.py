"""What one request of a device may take of a gateway's memory, and what becomes of a large one."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from forwarder_process import account

from fieldring.gateway import inbox as inbox_module
from fieldring.gateway.accounts import Accounts
from fieldring.gateway.dead_letter import DeadLetters
from fieldring.gateway.http_in import HttpIn
from fieldring.gateway.inbox import Inbox
from fieldring.gateway.metrics import Metrics
from fieldring.http.errors import MAX_REPORTED_LINES
from fieldring.model import Batch
from fieldring.settings import Settings
from fieldring.wire import block, senml

T = 1_600_000_000
Post = Callable[..., httpx.Response]
CBOR = {"Content-Type": "application/senml+cbor"}
JSON = {"Content-Type": "application/senml+json"}


class Spool:
    """Remembers what was appended together."""

    def __init__(self) -> None:
        self.groups: list[list[bytes]] = []

    def append_many(self, payloads: Sequence[bytes]) -> list[None]:
        self.groups.append(list(payloads))
        return [None] * len(payloads)

    def batches(self) -> list[Batch]:
        return [block.decode(payload) for group in self.groups for payload in group]


@pytest.fixture
def spool() -> Spool:
    return Spool()


@pytest.fixture
def post(tmp_path: Path, metrics: Metrics, spool: Spool) -> Iterator[Post]:
    """POST as device ``a``."""
    (tmp_path / "passwords").write_text(account("a", "p"))
    letters = DeadLetters(tmp_path, max_bytes=1_000_000, metrics=metrics)
    app = HttpIn(
        Inbox(spool, dead_letters=letters, metrics=metrics),
        Accounts(tmp_path / "passwords"),
        settings=Settings(),
        metrics=metrics,
        now_ms=lambda: 0,
    )

    async def served(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {}}, receive, send)

    def ask(path: str, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(served)
            async with httpx.AsyncClient(transport=transport, base_url="http://x", auth=("a", "p")) as http:
                return await http.post(path, content=content, headers=headers)

        return asyncio.run(run())

    yield ask
    app.close()


@pytest.mark.parametrize(
    "line", [b"x%d", b"no2,sensor=b value=1 %d000000"], ids=["junk", "of another sensor"]
)
def test_lines_without_end_are_counted_not_kept(post: Post, line: bytes) -> None:
    """Each was kept with its reason until the answer: some megabytes of junk took all memory."""
    lines = 3 * MAX_REPORTED_LINES
    body = gzip.compress(b"no2,sensor=a value=1 1\n" + b"\n".join([line % n for n in range(lines)]))
    answer = post("/write", body, {"Content-Encoding": "gzip"})
    assert answer.status_code == 400
    assert len(answer.json()["errors"]) == MAX_REPORTED_LINES
    assert answer.json()["message"].startswith(f"{lines} lines were refused")


@pytest.mark.parametrize(
    ("headers", "small", "large"),
    [
        (JSON, b'[{"n":"a/no2","t":%d,"v":1}%s]' % (T, b" " * 500_000), b"[{}%s]" % (b",{}" * 200_000)),
        (CBOR, b"", b"\x9a\x00\x03\x00\x00" + b"\xa0" * 0x30000),
    ],
    ids=["json", "cbor"],
)
def test_a_pack_is_decoded_within_the_budget(
    post: Post, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], small: bytes, large: bytes
) -> None:
    """Its records take many times its bytes: what may not fit is refused before it is decoded."""
    if small:
        assert post("/api/v1/senml", small, headers).status_code == 202
    decoded: list[int] = []
    monkeypatch.setattr(senml, "decode", lambda body, **_: decoded.append(len(body)))
    for body, more in ((large, {}), (gzip.compress(large), {"Content-Encoding": "gzip"})):
        answer = post("/api/v1/senml", body, headers | more)
        assert (answer.status_code, decoded) == (413, [])
        assert "send it in parts" in answer.json()["message"]


def test_a_large_pack_becomes_blocks_that_an_ingest_host_takes(
    post: Post, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was too large was answered 413 there, and its acknowledged points became a dead letter."""
    monkeypatch.setattr(inbox_module, "_BLOCK_MAX_BYTES", 1_000)
    records = b",".join(b'{"n":"a/no2","t":%d,"v":%d,"u":"ppb"}' % (T + n // 2, n) for n in range(400))
    answer = post("/api/v1/senml", b"[" + records + b"]", JSON)
    assert (answer.status_code, answer.headers["Fieldring-Collapsed"]) == (202, "200")
    (group,) = spool.groups
    assert len(group) > 1
    assert max(map(len, group)) <= 1_000
    batches = spool.batches()
    assert [(T + n) * 1000 for n in range(200)] == [t for batch in batches for t in batch.times_ms]
    assert {batch.received for batch in batches} == {batches[0].received}
    assert sum(batch.collapsed for batch in batches) == 200
    assert all(batch.attributes == {"a": {"unit:no2": "ppb"}} for batch in batches)
