"""The command ``fieldring``. Nothing is decided here: arguments in, ``wiring`` called, exit code out.

Exit codes: 0 done, 1 done in part or failed, 2 wrong arguments or settings, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fieldring import __version__, settings, wiring
from fieldring.cli import json_log
from fieldring.errors import ConfigurationError

__all__ = ["main"]

_log = logging.getLogger("fieldring")

_SERVICES: dict[str, tuple[Callable[[settings.Settings], int], str]] = {
    "receive": (wiring.run_receive, "take writes over HTTP; stored at quorum, else spooled"),
    "serve": (wiring.run_serve, "give readings and pages over HTTP"),
    "analyse": (wiring.run_analyse, "judge what arrived by the quality rules"),
    "forward": (wiring.forward, "gateway: take MQTT messages and send them on to the ingest hosts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        found = settings.load(os.environ)
        json_log.configure(found.log_level)
        return int(arguments.run(arguments, found))
    except ConfigurationError as error:
        print(f"fieldring: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fieldring: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fieldring",
        description="Durable ingest, quality control and reading of sensor data.",
        epilog="Services are set up by FIELDRING_* environment variables.",
    )
    parser.add_argument("--version", action="version", version=f"fieldring {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, text) in _SERVICES.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=lambda _arguments, found, run=run: run(found))

    drain = commands.add_parser(
        "drain", help="empty spools that no running worker holds into the store, once"
    )
    drain.set_defaults(run=lambda _arguments, found: wiring.drain_spool(found, progress=_say))

    inspect = commands.add_parser("inspect-spool", help="show what lies in a spool, changing nothing")
    inspect.add_argument("directory", nargs="?", help="spool root (default: FIELDRING_SPOOL_DIR)")
    inspect.add_argument("--text", action="store_true", help="a table for people instead of JSON")
    inspect.set_defaults(run=_inspect_spool)

    load = commands.add_parser(
        "import",
        help="send CSV files to the HTTP API",
        description="Send CSV files (columns time,sensor,metric,value; or time and one column per metric). "
        "Times are epoch milliseconds or RFC 3339. Importing a file again changes nothing.",
    )
    load.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CSV file, - for standard input")
    load.add_argument(
        "--url", default=os.environ.get("FIELDRING_URL"), help="ingest host (default: $FIELDRING_URL)"
    )
    load.add_argument("--ca", default=os.environ.get("FIELDRING_CA"), help="CA file (default: $FIELDRING_CA)")
    load.add_argument(
        "--token-file", type=Path, help="file with a write token (default: $FIELDRING_WRITE_TOKEN)"
    )
    load.add_argument("--sensor", default="", help="sensor of all rows, for files without such a column")
    load.add_argument("--text", action="store_true", help="keep values that are no numbers as text")
    load.add_argument("--batch", type=int, default=5_000, metavar="POINTS", help="points per request")
    load.add_argument(
        "--from-line", type=int, default=1, metavar="N", help="begin at this line (of a single file)"
    )
    load.set_defaults(run=_import)
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _inspect_spool(arguments: argparse.Namespace, found: settings.Settings) -> int:
    from fieldring.spool import inspect, render

    directory = Path(arguments.directory or found.spool_dir)
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is not a directory: name the spool's root")
    report = inspect(directory)
    if arguments.text:
        print(render(report))
    else:
        json.dump(report, sys.stdout, indent=2, ensure_ascii=False)
        print()
    return 0


def _import(arguments: argparse.Namespace, _found: settings.Settings) -> int:
    from fieldring.cli.csv_import import Import, UnreadableFile
    from fieldring.client import Client, RequestFailed

    if not arguments.url:
        raise ConfigurationError("no ingest host: give --url or set FIELDRING_URL")
    if arguments.from_line > 1 and len(arguments.files) > 1:
        raise ConfigurationError("--from-line is of one file: import the files one by one")
    if arguments.token_file:
        token = settings.read_secret("write_token_file", str(arguments.token_file))
    else:
        token = os.environ.get("FIELDRING_WRITE_TOKEN", "")
    if not token:
        raise ConfigurationError("no token: give --token-file or set FIELDRING_WRITE_TOKEN")
    terminal = sys.stderr.isatty()

    def progress(line: str) -> None:
        print(
            f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True
        )

    with Client(arguments.url, token=token, ca_file=arguments.ca or None) as client:
        run = Import(
            client=client,
            sensor=arguments.sensor,
            text=arguments.text,
            batch_points=max(1, arguments.batch),
            from_line=arguments.from_line,
            report=_say,
            progress=progress,
        )
        status = 0
        for path in arguments.files:
            try:
                run.file(path)
            except UnreadableFile as error:
                _say(f"{error}")
                status = 1
            except (RequestFailed, ValueError, KeyboardInterrupt) as error:
                _say(f"{path}:{run.line}: {str(error) or 'interrupted'}")
                _say(
                    f"What was sent is kept. To go on: --from-line {run.sent_line + 1} with {path}, then the "
                    "files after it; the whole file again does no harm either."
                )
                status = 130 if isinstance(error, KeyboardInterrupt) else 1
                break
    if terminal:
        print(file=sys.stderr)
    _say(
        f"{run.rows} rows: {run.points} points sent ({run.spooled} of them spooled), "
        f"{run.missing} missing values left out, {run.refused} refused"
    )
    return status or (1 if run.refused else 0)
