"""The devices' HTTP listener: uvicorn's protocol without its server, on the loop that MQTT runs on too."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import uvicorn
from uvicorn.server import ServerState

from fieldring.errors import BudgetExceeded
from fieldring.gateway.http_in import HttpIn
from fieldring.gateway.metrics import Metrics
from fieldring.http.protocol import LimitedProtocol

__all__ = ["HttpServer"]

_IDLE_SECONDS = 75.0
_TOLD_SECONDS = 5.0
_TOLD_MAX = 64
"""Connections over the limit that are told so; those beyond them are only ended."""

_CLOSE_SECONDS = 5.0


class HttpServer:
    """All connections of devices; ends those that send no request, and those beyond the limit."""

    def __init__(self, app: HttpIn, *, connections_max: int, metrics: Metrics) -> None:
        logging.getLogger("uvicorn.access").disabled = True
        self._app = app
        self.connections_max = connections_max
        self.metrics = metrics
        self.config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(_IDLE_SECONDS),
        )
        self.config.load()
        self.state = ServerState()

    def __call__(self) -> asyncio.Protocol:
        """For ``create_server``."""
        return _Connection(self)

    def sweep(self, now: float) -> None:
        """About once a second."""
        for connection in tuple(self.state.connections):
            cast(_Connection, connection).sweep(now)

    async def close(self) -> None:
        """End all connections, after what they sent is answered."""
        for connection in tuple(self.state.connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        end = loop.time() + _CLOSE_SECONDS
        while self.state.tasks and loop.time() < end:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self._app.close)


class _Connection(LimitedProtocol):
    def __init__(self, server: HttpServer) -> None:
        super().__init__(config=server.config, server_state=server.state, app_state={})
        self._server = server
        self._over = False
        self._since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        over = len(self.connections) - self._server.connections_max
        if over > 0:
            self._server.metrics.device_refused.labels("connections").inc()
            self._over = True
            self.app_state["refusal"] = BudgetExceeded(
                "too many devices are connected: retry shortly", retry_after_s=5
            )
            if over > _TOLD_MAX:
                transport.abort()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._over:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def note_refusal(self, status: int) -> None:
        self._server.metrics.http_answers.labels(str(status)).inc()

    def sweep(self, now: float) -> None:
        """End a connection without a whole head; of what is being answered the application takes care."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and now - self._since > (_TOLD_SECONDS if self._over else _IDLE_SECONDS):
            self.transport.close()
