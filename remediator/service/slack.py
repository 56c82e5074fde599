"""Wires Slack as a way in: its signing secret, who may press the buttons, where replies go."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from remediator.config.settings import Settings
from remediator.intake.slack_actions import Desk
from remediator.model.access import Principal
from remediator.model.errors import ConfigError
from remediator.service.metrics import Telemetry
from remediator.store import Store

_log = structlog.get_logger(__name__)


def open_desk(
    settings: Settings, environ: Mapping[str, str], store: Store, telemetry: Telemetry
) -> Desk | None:
    """Return what takes the clicks; None where no signing secret is configured.

    Raises ``ConfigError`` for a secret that cannot be read now. When it cannot be read later, no
    click is believed until it can.
    """
    slack = settings.slack
    reference = slack.secret("signing_secret") if slack else None
    if slack is None or reference is None:
        return None
    from remediator.notify.slack_replies import (  # noqa: PLC0415 - only where configured
        SlackReplies,
    )

    try:
        reference.read(environ)
    except ConfigError as error:
        raise ConfigError(f"{settings.where('slack')}: {error}") from error

    def secret() -> str | None:
        try:
            return reference.read(environ)
        except ConfigError as error:
            _log.error("signing_secret_unreadable", reason=str(error))
            return None

    return Desk(
        secret=secret,
        people={a.slack: Principal(a.name, a.role) for a in settings.approvers if a.slack},
        orders=store.commands,
        clicks=store.clicks,
        replies=SlackReplies(slack.api_url),
        refused=lambda reason: telemetry.rejected_requests.labels(reason).inc(),
    )
