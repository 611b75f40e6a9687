"""Rules: which checks judge which metric, with which arguments, under which version.

The document is ``{"version": ..., "metrics": {metric: {test: {argument: value}}}}``. A metric finds
its rules by ``Rules.for_metric``. The shipped ``rules.json`` holds for gases in ppb, particles in
µg/m³, temperatures in °C and relative humidity in %.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldring.errors import ConfigurationError
from fieldring.quality import checks
from fieldring.quality.checks import Flags, Times, Values

__all__ = ["CHECKS", "NEIGHBOUR_REACH_S", "BoundCheck", "Check", "Rules", "RulesFile", "parse"]

log = logging.getLogger(__name__)

NEIGHBOUR_REACH_S = 90_000
"""How far away a neighbouring value still is one: a day and an hour, so that daily series have some."""

Arguments = Mapping[str, Any]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a finite number")
    return float(value)


def _positive(value: Any) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError("must be greater than 0")
    return number


def _not_negative(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError("must not be negative")
    return number


def _span(value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be a list of two numbers, [lowest, highest]")
    low, high = map(_number, value)
    if low >= high:
        raise ValueError("must hold the lower number first")
    return low, high


def _method(value: Any) -> str:
    if value not in ("average", "differential"):
        raise ValueError("must be average or differential")
    return str(value)


def _check_gross_range(arguments: Arguments) -> None:
    suspect = arguments.get("suspect_span")
    if suspect is not None:
        fail = arguments["fail_span"]
        if suspect[0] < fail[0] or suspect[1] > fail[1]:
            raise ValueError("suspect_span must lie within fail_span")


def _check_spike(arguments: Arguments) -> None:
    if "suspect_threshold" not in arguments and "fail_threshold" not in arguments:
        raise ValueError("needs suspect_threshold, fail_threshold or both")
    _check_thresholds("suspect_threshold", arguments)


def _check_rate(arguments: Arguments) -> None:
    _check_thresholds("threshold", arguments)


def _check_flat(arguments: Arguments) -> None:
    _check_thresholds("suspect_threshold", arguments)


def _check_thresholds(lower: str, arguments: Arguments) -> None:
    if (
        lower in arguments
        and "fail_threshold" in arguments
        and arguments["fail_threshold"] < arguments[lower]
    ):
        raise ValueError(f"fail_threshold must not be below {lower}")


def _still(values: Values, arguments: Arguments) -> NDArray[np.bool_]:
    """Which values differ from the one before by less than the tolerance."""
    still = np.zeros(values.shape, dtype=np.bool_)
    still[1:] = ~(np.abs(np.diff(values)) >= arguments.get("tolerance", 0.0))
    return still


@dataclass(frozen=True, slots=True)
class Check:
    """A test with all that has to be known of it.

    ``window_s`` is how far before a point its verdict looks, ``lookahead_s`` how far after. With
    ``neighbours`` only the nearest value inside of these counts, else all. A point at t can
    therefore change verdicts in [t - lookahead, t + window], and no others.

    Tests with a window of time see an hour together with the window before the hour's start.
    ``suspected`` may say cheaply which values cannot be flagged at all.
    """

    name: str
    run: Callable[[Values, Times, Arguments], Flags]
    arguments: Mapping[str, Callable[[Any], Any]]
    required: frozenset[str]
    window_s: Callable[[Arguments], float]
    lookahead_s: Callable[[Arguments], float]
    neighbours: bool = False
    together: Callable[[Arguments], None] | None = None
    suspected: Callable[[Values, Arguments], NDArray[np.bool_]] | None = None


CHECKS: Mapping[str, Check] = {
    check.name: check
    for check in (
        Check(
            name="gross_range",
            run=lambda inp, _times, arguments: checks.gross_range(inp, **arguments),
            arguments={"fail_span": _span, "suspect_span": _span},
            required=frozenset({"fail_span"}),
            window_s=lambda _: 0,
            lookahead_s=lambda _: 0,
            together=_check_gross_range,
        ),
        Check(
            name="spike",
            run=lambda inp, _times, arguments: checks.spike(inp, **arguments),
            arguments={"suspect_threshold": _positive, "fail_threshold": _positive, "method": _method},
            required=frozenset(),
            window_s=lambda _: NEIGHBOUR_REACH_S,
            lookahead_s=lambda _: NEIGHBOUR_REACH_S,
            neighbours=True,
            together=_check_spike,
        ),
        Check(
            name="rate_of_change",
            run=lambda inp, times, arguments: checks.rate_of_change(inp, times, **arguments),
            arguments={"threshold": _positive, "fail_threshold": _positive},
            required=frozenset({"threshold"}),
            window_s=lambda _: NEIGHBOUR_REACH_S,
            lookahead_s=lambda _: 0,
            neighbours=True,
            together=_check_rate,
        ),
        Check(
            name="flat_line",
            run=lambda inp, times, arguments: checks.flat_line(inp, times, **arguments),
            arguments={
                "suspect_threshold": _positive,
                "fail_threshold": _positive,
                "tolerance": _not_negative,
            },
            required=frozenset({"suspect_threshold", "fail_threshold"}),
            # Twice the threshold: the test counts observations, and gaps spread them out.
            window_s=lambda arguments: 2 * float(arguments["fail_threshold"]),
            lookahead_s=lambda _: 0,
            together=_check_flat,
            suspected=_still,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class BoundCheck:
    """A check with the arguments of one metric."""

    check: Check
    arguments: Arguments
    window_ms: int
    lookahead_ms: int

    def run(self, inp: Values, times_ms: Times) -> Flags:
        return self.check.run(inp, times_ms, self.arguments)


@dataclass(frozen=True, slots=True)
class Rules:
    """One version of all rules."""

    version: str
    document: Mapping[str, Any]
    metrics: Mapping[str, tuple[BoundCheck, ...]]
    _found: dict[str, tuple[BoundCheck, ...]] = field(default_factory=dict, compare=False)

    def for_metric(self, metric: str) -> tuple[BoundCheck, ...]:
        """The checks of ``metric``; none: it is not evaluated.

        The exact name decides; else the name without what distinguishes its series (``{k=v}``); else
        the longest part of that which begins after a ``_``, so that ``airquality_no2`` follows the
        rules of ``no2``. ``{}`` as the rules of a name switches its checks off.
        """
        found = self._found.get(metric)
        if found is None:
            found = self._find(metric)
            if len(self._found) < 100_000:
                self._found[metric] = found
        return found

    def _find(self, metric: str) -> tuple[BoundCheck, ...]:
        name = metric
        while True:
            if name in self.metrics:
                return self.metrics[name]
            if name.endswith("}") and "{" in name:
                name = name[: name.index("{")]
                continue
            _, underscore, name = name.partition("_")
            if not underscore:
                return ()


def parse(text: bytes | str, *, source: str) -> Rules:
    """Rules from a JSON document.

    Raises:
        ConfigurationError: names source, metric, test, argument, the value found and what it must be.
    """
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{source}: not a JSON document: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{source}: must be an object with version and metrics")
    unknown = sorted(set(document) - {"version", "metrics"})
    if unknown:
        raise ConfigurationError(f"{source}: {unknown[0]!r} is not known; only version and metrics are")
    version = document.get("version")
    if isinstance(version, bool) or not isinstance(version, int | str) or version == "":
        raise ConfigurationError(f"{source}: version is {version!r}, but must be a text or a whole number")
    metrics = document.get("metrics")
    if not isinstance(metrics, dict):
        raise ConfigurationError(f"{source}: metrics must be an object of metric names")
    return Rules(
        version=str(version),
        document=document,
        metrics={
            metric: _bind_metric(metric, tests, where=f"{source}: metric {metric!r}")
            for metric, tests in metrics.items()
        },
    )


def _bind_metric(metric: str, tests: Any, *, where: str) -> tuple[BoundCheck, ...]:
    if not metric:
        raise ConfigurationError(f"{where}: a metric must have a name")
    if not isinstance(tests, dict):
        raise ConfigurationError(f"{where}: must be an object of tests")
    return tuple(_bind(name, arguments, where=f"{where}, test {name!r}") for name, arguments in tests.items())


def _bind(name: str, arguments: Any, *, where: str) -> BoundCheck:
    check = CHECKS.get(name)
    if check is None:
        raise ConfigurationError(f"{where}: no such test; there are {', '.join(sorted(CHECKS))}")
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"{where}: must be an object of arguments")
    bound: dict[str, Any] = {}
    for argument, value in arguments.items():
        convert = check.arguments.get(argument)
        if convert is None:
            known = ", ".join(check.arguments)
            raise ConfigurationError(f"{where}: no such argument {argument!r}; it takes {known}")
        if value is None and argument not in check.required:
            continue
        try:
            bound[argument] = convert(value)
        except ValueError as error:
            raise ConfigurationError(f"{where}, argument {argument!r}: is {value!r}, but {error}") from None
    missing = sorted(check.required - set(bound))
    if missing:
        raise ConfigurationError(f"{where}: argument {missing[0]!r} is missing")
    if check.together is not None:
        try:
            check.together(bound)
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    window, lookahead = check.window_s(bound), check.lookahead_s(bound)
    return BoundCheck(check, bound, window_ms=int(window * 1000), lookahead_ms=int(lookahead * 1000))


class RulesFile:
    """The rules in force: a file that is read again when it changes, or the rules shipped.

    A file that is wrong at the start is refused; one that becomes wrong later leaves the last good
    rules in force, and ``error`` says why. Threads may share it: the rules are swapped as a whole.
    """

    def __init__(
        self,
        path: str = "",
        *,
        check_interval_s: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path) if path else None
        self._interval = check_interval_s
        self._monotonic = monotonic
        self._seen: tuple[int, int, int] | None = None
        self.error = ""
        if self._path is None:
            shipped = resources.files("fieldring.quality").joinpath("rules.json").read_bytes()
            self._rules = parse(shipped, source="the rules shipped")
        else:
            self._seen = self._stamp(self._path)
            self._rules = self._read(self._path)
        self._due = monotonic() + check_interval_s

    def current(self) -> Rules:
        """The rules in force now."""
        if self._path is not None and self._monotonic() >= self._due:
            self._due = self._monotonic() + self._interval
            try:
                stamp = self._stamp(self._path)
                if stamp != self._seen:
                    self._rules = self._read(self._path)
                    self._seen = stamp
                    log.info("quality rules version %s are in force", self._rules.version)
                self.error = ""
            except ConfigurationError as error:
                if str(error) != self.error:
                    log.error("%s; version %s stays in force", error, self._rules.version)
                self.error = str(error)
        return self._rules

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int, int]:
        try:
            status = path.stat()
        except OSError as error:
            raise ConfigurationError(f"FIELDRING_RULES_FILE: cannot read {path}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    @staticmethod
    def _read(path: Path) -> Rules:
        try:
            return parse(path.read_bytes(), source=f"rules file {path}")
        except OSError as error:
            raise ConfigurationError(f"FIELDRING_RULES_FILE: cannot read {path}: {error.strerror}") from error
