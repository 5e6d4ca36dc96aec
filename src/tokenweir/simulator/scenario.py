"""The scenario: a TOML or JSON file that says how the simulator behaves before any request asks for more.

Rules are tried in order and the first that matches decides. A rule's `nth`, `every`, `from` and `until` count the attempts that met its other
conditions; `probability` is drawn from the seed and the attempt's number, so that a run can be repeated.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tokenweir.errors import OperatorError
from tokenweir.simulator.directives import BadDirective, build, split_directives

BATCHES = "/v1/messages/batches"


class ScenarioInvalid(OperatorError):
    """The scenario file cannot be used."""

    code = "scenario_invalid"


class Pace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How fast answers come. Zero is as fast as the machine can."""

    ttfb_ms: Annotated[float, msgspec.Meta(ge=0)] = 0
    event_ms: Annotated[float, msgspec.Meta(ge=0)] = 0
    event_tokens: Annotated[int, msgspec.Meta(ge=1)] = 5
    ping_ms: Annotated[float, msgspec.Meta(gt=0)] = 15_000
    """A ping after so much silence within a stream, as the provider sends."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Per minute, for one workspace and one class of models."""

    requests: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    input_tokens: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000_000
    output_tokens: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000_000


class LimitTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which limits apply: by class of models, then the default. Classes are those of `catalog`; a fast request's class ends in `-fast`."""

    default: Limits = Limits()
    classes: dict[str, Limits] = {}
    workspaces: dict[str, Limits] = {}
    """Beats the class for that workspace."""
    count_requests: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    """count_tokens requests per minute and workspace."""
    batch_requests: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    """Requests to the routes of batches per minute and workspace."""
    batch_queued: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000_000
    """Lines of a workspace's batches that may wait at the same time."""


class CacheTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long cached prefixes live; shorten them to test expiry."""

    short_ms: Annotated[int, msgspec.Meta(ge=1)] = 300_000
    long_ms: Annotated[int, msgspec.Meta(ge=1)] = 3_600_000


class BatchTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How batches pass their time. All of these lengths are divided by `speed`."""

    delay_ms: Annotated[float, msgspec.Meta(ge=-1)] = 0
    """Until the last line of a batch is done; -1: never by itself."""
    canceling_ms: Annotated[float, msgspec.Meta(ge=-1)] = 0
    """How long a batch is `canceling`; -1: until it expires."""
    lifetime_ms: Annotated[float, msgspec.Meta(gt=0)] = 86_400_000
    """Until it expires."""
    archive_ms: Annotated[float, msgspec.Meta(gt=0)] = 29 * 86_400_000
    """After its creation its results are gone."""
    speed: Annotated[float, msgspec.Meta(gt=0)] = 1
    owner: Literal["key", "workspace"] = "key"
    """Who finds a batch again: the key that created it, or every key of its workspace."""


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """The conditions of a rule; all must hold. Texts are patterns with `*` and `?`."""

    path: str = ""
    """Without it a rule is about messages, not about the routes of batches."""
    method: str = ""
    batch: bool = False
    """Whether the rule is about the lines of batches (which have no path, method or headers) instead of requests."""
    custom_id: str = ""
    model: str = ""
    workspace: str = ""
    stream: bool | None = None
    header: dict[str, str] = {}
    nth: Annotated[int, msgspec.Meta(ge=1)] | None = None
    every: Annotated[int, msgspec.Meta(ge=1)] | None = None
    from_: Annotated[int, msgspec.Meta(ge=1)] | None = None
    until: Annotated[int, msgspec.Meta(ge=1)] | None = None
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the conditions hold, these directives apply."""

    do: dict[str, Any] | str
    match: Match = Match()
    name: str = ""


class ExtraModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model the real catalog does not have, behaving like one it has."""

    id: str
    like: str


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    pace: Pace = Pace()
    limits: LimitTable = LimitTable()
    cache: CacheTimes = CacheTimes()
    batches: BatchTimes = BatchTimes()
    keys: tuple[str, ...] = ()
    """The only credentials accepted; without any, every credential is."""
    models: tuple[ExtraModel, ...] = ()
    rules: tuple[Rule, ...] = ()


class Occasion(msgspec.Struct, frozen=True):
    """What rules look at."""

    attempt: int
    path: str
    model: str
    workspace: str
    stream: bool
    headers: Sequence[tuple[bytes, bytes]]
    method: str = "POST"
    custom_id: str | None = None
    """Of a line of a batch; None for a request."""


class Rulebook:
    """The rules of one run, with how often each has been met."""

    def __init__(self, rules: Sequence[Rule], seed: int) -> None:
        self._rules = [(rule.match, split_directives(rule.do) if isinstance(rule.do, str) else rule.do) for rule in rules]
        self._met = [0] * len(rules)
        self._seed = seed

    def directives(self, occasion: Occasion) -> Mapping[str, Any]:
        """What the first matching rule asks for; nothing if none matches."""
        for index, (match, wanted) in enumerate(self._rules):
            if not _fits(match, occasion):
                continue
            self._met[index] += 1
            if _due(match, self._met[index]) and self._drawn(match.probability, index, occasion.attempt):
                return wanted
        return {}

    def _drawn(self, probability: float | None, rule: int, attempt: int) -> bool:
        if probability is None:
            return True
        draw = int.from_bytes(blake2b(b"%d:%d:%d" % (self._seed, rule, attempt), digest_size=6).digest(), "big")
        return draw < probability * (1 << 48)


def read_scenario(path: Path) -> Scenario:
    """Read and check a scenario file; raises ScenarioInvalid."""
    try:
        text = path.read_bytes()
        values = tomllib.loads(text.decode()) if path.suffix == ".toml" else msgspec.json.decode(text)
        scenario = msgspec.convert(values, Scenario)
        for number, rule in enumerate(scenario.rules):
            build(split_directives(rule.do) if isinstance(rule.do, str) else rule.do)
            _check_match(rule.match, number)
    except OSError as error:
        raise ScenarioInvalid(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.MsgspecError, BadDirective) as error:
        raise ScenarioInvalid(f"{path}: {error}") from error
    return scenario


def _check_match(match: Match, number: int) -> None:
    """A rule that could never match is a mistake."""
    if match.batch and (match.path or match.method or match.header or match.stream):
        raise ScenarioInvalid(f"rules.{number}: a line of a batch has no path, method or header and is no stream")
    if match.custom_id and not match.batch:
        raise ScenarioInvalid(f"rules.{number}: only a line of a batch has a custom_id: add batch = true")


def _fits(match: Match, occasion: Occasion) -> bool:
    if match.batch != (occasion.custom_id is not None):
        return False
    if match.custom_id and not fnmatchcase(occasion.custom_id or "", match.custom_id):
        return False
    if not fnmatchcase(occasion.path, match.path) if match.path else occasion.path.startswith(BATCHES):
        return False
    if match.method and not fnmatchcase(occasion.method, match.method):
        return False
    if match.model and not fnmatchcase(occasion.model, match.model):
        return False
    if match.workspace and not fnmatchcase(occasion.workspace, match.workspace):
        return False
    if match.stream is not None and match.stream != occasion.stream:
        return False
    for name, pattern in match.header.items():
        wanted = name.lower().encode()
        if not any(header == wanted and fnmatchcase(value.decode("latin-1"), pattern) for header, value in occasion.headers):
            return False
    return True


def _due(match: Match, met: int) -> bool:
    if match.nth is not None and met != match.nth:
        return False
    if match.every is not None and met % match.every:
        return False
    return (match.from_ is None or met >= match.from_) and (match.until is None or met <= match.until)
