"""CORRELATE: alerts open, join or leave incidents. Pure: the store applies what it returns.

An alert's row is one episode of its fingerprint. While an episode is open every firing
notification of it joins, whatever its startsAt; a later startsAt after a resolve, or after its
incident was closed, opens a new one; a resolve that is older than the open episode is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import AwareDatetime

from remediator.model import (
    Alert,
    AlertId,
    AlertStatus,
    Delivery,
    DeliveryId,
    IncidentId,
    IncidentOutcome,
    new_id,
)
from remediator.store.episodes import Batch, Correlation, Episode, Joining, Opening, Snapshot
from remediator.triage.match import Match

STALE_WITHIN = timedelta(minutes=5)
"""Time after a resolve in which a firing notification with an old startsAt is a late copy.

After it the same startsAt means that the condition is back: Prometheus keeps the start of an
alert over its own restart, and Alertmanager resolves it meanwhile."""

Matching = Callable[[Alert, Delivery], Match]


def correlate(batch: Batch, snapshot: Snapshot, now: datetime, matching: Matching) -> Correlation:
    """Decide, for each alert of ``batch`` in order, what it opens, joins or leaves."""
    draft = _Draft(snapshot, now, matching)
    for delivery, alerts in batch:
        draft.touched[delivery.id] = {}
        for alert in alerts:
            if delivery.replay_of is not None:
                draft.replay(delivery, alert)
            elif alert.status is AlertStatus.FIRING:
                draft.firing(delivery, alert)
            else:
                draft.resolved(delivery, alert)
    return draft.correlation()


@dataclass
class _Draft:
    """The decisions so far; later alerts of a batch see what earlier ones did."""

    snapshot: Snapshot
    now: datetime
    matching: Matching
    opened: dict[str, Opening] = field(default_factory=dict)
    joined: dict[AlertId, Joining] = field(default_factory=dict)
    resent: dict[AlertId, None] = field(default_factory=dict)
    left: dict[AlertId, AwareDatetime | None] = field(default_factory=dict)
    superseded: dict[AlertId, None] = field(default_factory=dict)
    touched: dict[DeliveryId, dict[IncidentId, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.episodes = dict(self.snapshot.episodes)
        self.open_incidents = dict(self.snapshot.open_incidents)

    def firing(self, delivery: Delivery, alert: Alert) -> None:
        episode = self.episodes.get(alert.fingerprint)
        if episode is None:
            self._begin(delivery, alert)
        elif self._begins_anew(episode, alert, delivery):
            self._supersede(episode)
            self._begin(delivery, alert)
        elif episode.status is AlertStatus.FIRING:
            self._resend(delivery, episode)
        else:
            self._ignore(delivery, episode)

    def resolved(self, delivery: Delivery, alert: Alert) -> None:
        episode = self.episodes.get(alert.fingerprint)
        if episode is None or episode.status is not AlertStatus.FIRING:
            return
        if alert.ends_at is not None and alert.ends_at < episode.starts_at:
            self._ignore(delivery, episode)
        else:
            self._leave(delivery, episode, alert)

    def replay(self, delivery: Delivery, alert: Alert) -> None:
        if alert.status is not AlertStatus.FIRING:
            return
        match = self.matching(alert, delivery)
        key = f"{delivery.id}/{match.key(alert)}"
        incident = self._incident(key, match, alert, delivery)
        self._join(delivery, incident, alert, latest=False)

    def correlation(self) -> Correlation:
        return Correlation(
            opened=tuple(self.opened.values()),
            joined=tuple(self.joined.values()),
            resent=tuple(self.resent),
            left=tuple(self.left.items()),
            superseded=tuple(self.superseded),
            deliveries={delivery: tuple(found) for delivery, found in self.touched.items()},
        )

    def _begin(self, delivery: Delivery, alert: Alert) -> None:
        match = self.matching(alert, delivery)
        self._join(delivery, self._incident(match.key(alert), match, alert), alert)

    def _begins_anew(self, episode: Episode, alert: Alert, delivery: Delivery) -> bool:
        if episode.status is AlertStatus.FIRING:
            return episode.closed_at is not None and (
                alert.starts_at > episode.closed_at  # its resolve was lost
                or (episode.unmatched and self.matching(alert, delivery).playbook is not None)
            )
        if alert.starts_at > episode.starts_at:
            return True
        return episode.resolved_at is None or self.now - episode.resolved_at > STALE_WITHIN

    def _incident(
        self, key: str, match: Match, alert: Alert, replay: Delivery | None = None
    ) -> IncidentId:
        known = self.open_incidents.get(key)
        if known is not None:
            return known
        opening = Opening(
            id=IncidentId(new_id("inc", self.now)),
            correlation_key=key,
            system=match.system,
            service=match.service,
            playbook=match.playbook,
            outcome=IncidentOutcome.NO_MATCH if match.playbook is None else None,
            reason=match.reason,
            dry_run=replay.dry_run if replay is not None else False,
            replay_of=replay.replay_of if replay is not None else None,
        )
        self.opened[key] = opening
        self.open_incidents[key] = opening.id
        return opening.id

    def _join(
        self, delivery: Delivery, incident: IncidentId, alert: Alert, *, latest: bool = True
    ) -> None:
        joining = Joining(
            id=AlertId(new_id("alt", self.now)), incident_id=incident, alert=alert, latest=latest
        )
        self.joined[joining.id] = joining
        self.touched[delivery.id][incident] = None
        if latest:
            self.episodes[alert.fingerprint] = Episode(
                id=joining.id,
                incident_id=incident,
                fingerprint=alert.fingerprint,
                status=alert.status,
                starts_at=alert.starts_at,
                resolved_at=None,
            )

    def _resend(self, delivery: Delivery, episode: Episode) -> None:
        if episode.id not in self.joined:
            self.resent[episode.id] = None
        self.touched[delivery.id][episode.incident_id] = None

    def _ignore(self, delivery: Delivery, episode: Episode) -> None:
        self.touched[delivery.id][episode.incident_id] = None

    def _leave(self, delivery: Delivery, episode: Episode, alert: Alert) -> None:
        self.left[episode.id] = alert.ends_at
        self.touched[delivery.id][episode.incident_id] = None
        self.episodes[alert.fingerprint] = episode.model_copy(
            update={"status": AlertStatus.RESOLVED, "resolved_at": self.now}
        )

    def _supersede(self, episode: Episode) -> None:
        if episode.id in self.joined:
            joining = self.joined[episode.id]
            self.joined[episode.id] = joining.model_copy(update={"latest": False})
        else:
            self.superseded[episode.id] = None
