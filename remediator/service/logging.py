"""What the service tells of itself: its log (structlog) and its metrics (Prometheus).

A log line is an event with keys. Whatever libraries log goes the same way. Secrets are masked by
the name of their key, and where they can be told by their form.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import Processor

from remediator.model.redact import redact as redact_value

LogFormat = Literal["json", "console", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]

_TALKATIVE = ("httpx", "httpcore", "urllib3", "slack_sdk", "sqlalchemy", "alembic", "asyncpg")
"""Libraries whose chatter holds URLs, parameters and headers, or says nothing to an operator: only
their warnings are kept."""


# --- log --------------------------------------------------------------------------------------


def configure_logging(format: LogFormat, level: LogLevel, stream: TextIO) -> None:  # noqa: A002 - the setting's name
    """Send every event and every library's log record to ``stream``, one line each.

    ``auto`` is for people when ``stream`` is a terminal, else JSON. May be called again.
    """
    people = stream.isatty() if format == "auto" else format == "console"
    common = _common()
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                _renderer(people=people, colors=people and stream.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler as ours, so that a second call takes back no one else's."""


def _common() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _renderer(*, people: bool, colors: bool) -> Processor:
    if people:  # plain: a traceback with local variables would show secrets
        plain = structlog.dev.plain_traceback
        return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
    return structlog.processors.JSONRenderer()


def redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask secrets in ``event``, as a structlog processor."""
    masked: dict[str, Any] = redact_value(dict(event), whole=True)
    return masked
