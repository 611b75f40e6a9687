"""TLS in front of a plain server, as an ingest host's balancer has it; its certificate can be changed."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from pathlib import Path

__all__ = ["TlsProxy", "make_authority"]


def make_authority(path: Path, *names: str) -> Path:
    """A key and a certificate for those names that signs itself, in one file."""
    key = path.with_suffix(".key")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={path.stem}", "-addext", f"subjectAltName={','.join(names)}",
            "-keyout", str(key), "-out", str(path),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


class TlsProxy:
    """Listens on loopback until it is closed. ``received``: bytes that clients have sent, decrypted."""

    def __init__(self, target_port: int, certificate: Path) -> None:
        self._target_port = target_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.received = 0
        self.port = 0
        self.present(certificate)
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)

    def present(self, certificate: Path) -> None:
        """Show this one to who connects from now on."""
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))

    def cut(self) -> None:
        """End every connection."""
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in self._writers])

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        )
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        ends = {writer, forth}
        self._writers |= ends
        pumps = [
            asyncio.create_task(self._pump(reader, forth, counted=True)),
            asyncio.create_task(self._pump(back, writer, counted=False)),
        ]
        self._tasks |= set(pumps)
        await asyncio.wait(pumps)
        self._tasks -= set(pumps)
        self._writers -= ends

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        try:
            while data := await reader.read(65_536):
                self.received += len(data) if counted else 0
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
