"""The settings: the only reader of the environment and of the YAML file.

Read once, at start-up. Everything that is wrong is said at once, with its line. Secrets are
referred to and read late, by ``SecretRef.read``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
)
from pydantic.json_schema import GenerateJsonSchema

from remediator.config.approvals import (
    ApprovalsByRisk,
    Approver,
    ByKind,
    approver_complaints,
    kind_complaints,
    narrowed,
)
from remediator.config.catalog import (
    Complaint,
    ModeByRisk,
    Modes,
    Names,
    SystemEntry,
    Top,
    approval_complaints,
    build_catalogue,
    complaints,
)
from remediator.config.credentials import Credential, credential_complaints
from remediator.config.escalation import (
    ChannelEntry,
    EscalationEntry,
    calling_complaints,
    escalated,
)
from remediator.config.file import Document, Place, Problem, Shape, explain, failure, shown
from remediator.config.http import Http
from remediator.config.limits import LimitsByScope
from remediator.config.maintenance import Maintenance
from remediator.config.sections import (
    Backends,
    Count,
    File,
    Name,
    PagerDuty,
    Period,
    SecretRef,
    Section,
    Size,
    WebUrl,
)
from remediator.config.severities import SeveritiesEntry
from remediator.config.slack import Slack, place_complaints
from remediator.config.storage import Audit, Redis, Store
from remediator.model.access import Permission, permits
from remediator.model.base import Value
from remediator.model.catalog import Catalogue
from remediator.model.duration import format_duration
from remediator.model.errors import ConfigError
from remediator.model.maintenance import parse_zone

__all__ = ["Credential", "Listen", "SecretRef", "Settings", "load_settings", "settings_schema"]

CONFIG_FILE = "remediator.yaml"
"""Looked for in the working folder when no file is named."""


class Listen(Value):
    """Address that the service listens on."""

    host: str
    port: int
    """0 lets the operating system choose."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect; a host name other than localhost is not."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _listen(value: object) -> object:
    if isinstance(value, Listen):
        return value
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})", str(value))
    if match is None or int(match[3]) > 65535:
        raise ValueError("should be host:port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080")
    return Listen(host=match[1] or match[2], port=int(match[3]))


Address = Annotated[
    Listen, BeforeValidator(_listen, json_schema_input_type=str), PlainSerializer(str)
]


class Log(Section):
    """How the service writes its log."""

    format: Literal["json", "console", "auto"] = "auto"
    """`json` lines, `console` for people, or `auto`: console on a terminal, else json."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is written."""


class Admission(Section):
    """How much is taken of one sender. What is over it is answered 503, and sent again."""

    rate: Annotated[str, Field(pattern=r"^([1-9]\d{0,6}/(second|minute|hour)|unlimited)$")] = (
        "6000/minute"
    )
    """Webhooks of one credential, such as `600/minute`: over all replicas where they share a
    Redis, else in each; or `unlimited`."""


class Playbooks(Section):
    """Where playbooks are found, besides the built-in and the installed ones."""

    folders: tuple[File, ...] = ()
    """Folders of `*.py` files, one playbook each."""


class Settings(Section):
    """Configuration of the remediator: one YAML file, and `REMEDIATOR_*` variables over it."""

    listen: Address = Listen(host="127.0.0.1", port=8080)
    """Address to listen on, `host:port`. Anything but loopback needs `credentials`."""
    state_dir: File = Field(default_factory=lambda: Path("~/.local/state/remediator").expanduser())
    """Folder for the SQLite file and the generated tokens. Default
    `$XDG_STATE_HOME/remediator`, else `~/.local/state/remediator`."""
    mode: Modes = ModeByRisk()
    """How far the service may go, unless a system, service or playbook says otherwise: `observe`
    (only look), `shadow` (decide and record), `approve` (ask first) or `auto`. Default shadow."""
    credentials: tuple[Credential, ...] = ()
    """Who may call. None: two tokens are generated in `state_dir`."""
    approvers: tuple[Approver, ...] = ()
    """Persons who may approve in Slack; those with a credential may by the API as well."""
    approvals: ApprovalsByRisk = ApprovalsByRisk()
    """How many different persons must approve, by risk. Default 1 for each."""
    mitigations: ByKind = Field(default_factory=dict)
    """Who has to agree to a kind of mitigation, on every service: `auto`, `one`, `two`, `never`."""
    store: Store = Store()
    """The database that holds deliveries, incidents and the ledger."""
    audit: Audit = Audit()
    """What the journal is sealed with."""
    redis: Redis = Redis()
    """A Redis that the replicas share; optional."""
    admission: Admission = Admission()
    """How often a sender may post."""
    slack: Slack | None = None
    """Where incidents are told."""
    timezone: Annotated[str, AfterValidator(parse_zone)] = "UTC"
    """Time zone of the times in messages, such as `Europe/Berlin`."""
    public_url: WebUrl | None = None
    """Address at which people reach this service; messages link incidents below it."""
    pagerduty: PagerDuty | None = None
    """PagerDuty, as a sender and as the way to wake a person."""
    channels: dict[Name, ChannelEntry] = Field(default_factory=dict)
    """Further ways to people, by a name of your choice."""
    escalation: EscalationEntry = EscalationEntry()
    """Who is called when something needs a human, unless a system or service says otherwise."""
    severities: SeveritiesEntry = SeveritiesEntry()
    """How severe alerts are, unless a system or service says otherwise."""
    backends: Backends = Backends()
    """What can be read or changed."""
    playbooks: Playbooks = Playbooks()
    """Where playbooks are found."""
    limits: LimitsByScope = LimitsByScope()
    """Bounds on what is done."""
    maintenance: Maintenance = ()
    """When humans work on all systems themselves: nothing is changed, nobody is told."""
    systems: dict[Name, SystemEntry] = Field(default_factory=dict)
    """The systems looked after, by name."""
    max_body: Size = ByteSize(16 * 1024 * 1024)
    """Largest request body taken, in bytes or like `16MiB`."""
    max_alerts: Count = 10_000
    """Alerts taken of one webhook; one with more is answered 413, and none of them is taken."""
    max_connections: Count = 512
    """HTTP connections open at the same time."""
    http: Http = Http()
    """Who may connect, how often, and by which names."""
    header_timeout: Period = timedelta(seconds=10)
    """Time for a request's headers to arrive; then the connection is closed."""
    body_timeout: Period = timedelta(seconds=10)
    """Time for a request's body to arrive; then it is answered 408."""
    shutdown_within: Period = timedelta(seconds=20)
    """Time to finish what is being done when asked to stop."""
    log: Log = Log()
    """How the log is written."""

    _document: Document = PrivateAttr(default_factory=Document)

    def catalogue(self) -> Catalogue:
        """Build the catalogue of what is looked after.

        Raises ``ConfigError`` when something in it does not exist or cannot be told apart.
        """
        names = self.backends.names()
        wrong = [self._document.blame(*complaint) for complaint in self.complaints(names)]
        if wrong:
            raise failure(wrong)
        top = Top(self.mode, self.limits, self.maintenance, self.approvals, self.severities)
        catalogue = build_catalogue(self.systems, names, top)
        pages = "pagerduty" in self._built_in
        catalogue = narrowed(catalogue, self.mitigations, self.systems)
        return escalated(catalogue, self.escalation, self.systems, pages=pages)

    @property
    def deciders(self) -> list[str]:
        """Names of all who may approve, by whichever way; ``operator`` has a generated token."""
        held = {c.name for c in self.credentials if permits(c.role, Permission.OPERATE)}
        generated = set() if self.credentials else {"operator"}
        return sorted({a.name for a in self.approvers if a.decides} | held | generated)

    @property
    def _built_in(self) -> frozenset[str]:
        """Channels that are there without an entry of their own."""
        pages = self.pagerduty is not None and self.pagerduty.secret("routing_key") is not None
        there = {"slack": self.slack is not None, "pagerduty": pages}
        return frozenset(name for name, configured in there.items() if configured)

    def check_listen(self) -> None:
        """Raise ``ConfigError`` if others could connect and nobody needs a credential."""
        if not self.listen.is_loopback and not self.credentials:
            raise ConfigError(
                f"{self._document.place(('listen',))}: listening on {self.listen} lets other"
                " machines connect, but no credentials are configured; add credentials, or listen"
                " on 127.0.0.1"
            )

    def place(self, *key: str | int) -> Place:
        """Return where ``key`` was written, or what should have held it; no key: the file."""
        return self._document.place(key)

    def where(self, *key: str | int) -> str:
        """Say where ``key`` was written, for an error about it: ``FILE:LINE: systems.shop``."""
        return f"{self._document.place(key)}: {shown(key)}"

    def changes(self, other: Settings) -> list[str]:
        """Name the keys that ``other`` sets otherwise, adds or leaves out; never a value."""
        mine, theirs = dict(self._document.leaves()), dict(other._document.leaves())
        differing = (k for k in mine.keys() | theirs.keys() if mine.get(k, k) != theirs.get(k, k))
        return sorted(shown(key) for key in differing)

    def complaints(self, names: Names) -> Iterator[Complaint]:
        """Yield what does not fit together, where ``names`` are the backends that there are."""
        yield from credential_complaints(self.credentials, self.systems)
        yield from approver_complaints(self.approvers)
        yield from complaints(self.systems, names)
        yield from approval_complaints(self.systems, self.approvals, self.deciders)
        yield from place_complaints(self.slack, self.systems)
        yield from kind_complaints(self.mitigations, self.systems, self.deciders)
        yield from calling_complaints(self.escalation, self.systems, self.channels, self._built_in)


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the configuration file."""
    schema = Settings.model_json_schema(mode="validation", schema_generator=_Schema)
    return {"$schema": _Schema.schema_dialect, **schema}


class _Schema(GenerateJsonSchema):
    """Writes defaults as the file has them."""

    def encode_default(self, dft: Any) -> Any:
        match dft:
            case timedelta():
                return format_duration(dft)
            case Listen():
                return str(dft)
            case BaseModel():
                return dft.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return super().encode_default(dft)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def load_settings(config: Path | None, environ: Mapping[str, str], cwd: Path = Path()) -> Settings:
    """Read the file and the variables in ``environ``, which win over it.

    The file is ``config``, else ``$REMEDIATOR_CONFIG``, else ``remediator.yaml`` in ``cwd`` if it
    is there, else none. Raises ``ConfigError`` with a line for every single thing that is wrong.
    """
    home, cwd = _home(environ), cwd.absolute()
    shape, document = Shape(settings_schema()), Document()
    name = _config_name(config, environ, cwd)
    if name is not None:
        document.read_yaml(cwd / name, name)
    document.read_environment(environ, shape, cwd)
    if document.values.get("state_dir") is None:
        document.put(("state_dir",), _state_dir(environ), Place("default", base=home))
    document.resolve_paths(shape, home)
    return _validate(document, shape)


def _config_name(config: Path | None, environ: Mapping[str, str], cwd: Path) -> str | None:
    """Return the file as the user calls it; one that was asked for must be there."""
    asked = str(config) if config is not None else environ.get("REMEDIATOR_CONFIG", "")
    if not asked:
        return CONFIG_FILE if (cwd / CONFIG_FILE).exists() else None
    if not (cwd / asked).exists():
        origin = "" if config is not None else " (from REMEDIATOR_CONFIG)"
        raise ConfigError(f"the configuration file {asked}{origin} does not exist")
    return asked


def _state_dir(environ: Mapping[str, str]) -> str:
    state_home = environ.get("XDG_STATE_HOME", "")
    if not Path(state_home).is_absolute():  # as the XDG specification wants it
        state_home = "~/.local/state"
    return f"{state_home}/remediator"


def _home(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:  # a user without an entry, as in some containers
        return Path("/")


def _validate(document: Document, shape: Shape) -> Settings:
    """Give the values their meaning, or raise all that is wrong with them."""
    problems, names = list(document.problems), _names(document)
    try:
        settings: Settings | None = Settings.model_validate(document.values)
    except ValidationError as error:
        problems += explain(error, document, shape)
        settings = _sound_rest(error, document)
    if settings is not None:
        settings._document = document  # noqa: SLF001 - ours; it keeps the lines for later errors
        wrong = [document.blame(*complaint) for complaint in settings.complaints(names)]
        problems += [late for late in wrong if not _follows(late, problems)]
    if settings is None or problems:
        raise failure(problems, settings)
    return settings


def _follows(late: Problem, problems: list[Problem]) -> bool:
    """Say whether ``late`` may be there only because of what was left out as a problem."""
    matching = [p for p in problems if late.key[-1:] == ("match",) and "match" in p.key]
    same_system = any(p.key[:2] == late.key[:2] for p in matching)
    return same_system or any(late.overlaps(problem) for problem in problems)


def _sound_rest(error: ValidationError, document: Document) -> Settings | None:
    """Return what is left without the values that are wrong, to see whether it fits together."""
    while document.drop([detail["loc"] for detail in error.errors()]):
        try:
            return Settings.model_validate(document.values)
        except ValidationError as next_error:
            error = next_error
    return None


def _names(document: Document) -> dict[str, list[str]]:
    """List the backends that were written, well formed or not."""
    backends = document.values.get("backends")
    written = backends if isinstance(backends, dict) else {}
    return {kind: sorted(written.get(kind) or ()) for kind in Backends.model_fields}
