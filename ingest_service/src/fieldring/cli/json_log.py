"""Log lines as JSON on stderr, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import time

__all__ = ["configure"]

_SECRET = re.compile(r"([?&](?:u|p)=)[^&\s\"']+|\b((?:Token|Bearer|Basic)\s+)[^\s\"',]+", re.IGNORECASE)


def _redacted(text: str) -> str:
    return _SECRET.sub(lambda m: (m[1] or m[2]) + "***", text)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _redacted(record.getMessage()),
        }
        if record.exc_info:
            entry["exception"] = _redacted(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


def configure(level: str) -> None:
    """Send everything to stderr as JSON, one object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # The driver tells of every reconnect at warning; ours say it once, with the consequence.
    logging.getLogger("cassandra").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
