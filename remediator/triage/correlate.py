"""CORRELATE: alerts open, join or leave incidents. Pure: the store applies what it returns.

An alert's row is one episode of its fingerprint, which is computed from its labels. Should other
labels ever have the same one, they are kept apart: no alert joins or leaves what has other labels.
While an episode is open every firing notification of it joins, whatever its startsAt; a later
startsAt after a resolve, or after its incident was closed, opens a new one; a resolve that is older
than the open episode is ignored.

What no playbook takes is written down once a delivery and service, whatever it is called: many such
alerts in one body are one record. Of one sender and service there are only so many in a time; what
is over the bound joins a digest. Nothing that a playbook takes is ever in one.

PagerDuty reports incidents, and its events come in any order: the newest that counts is kept. What
Alertmanager reported too is Alertmanager's to end, whatever a human clicks in PagerDuty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import AwareDatetime

from remediator.model.alert import Alert, AlertStatus, Delivery, SenderEvent, Source
from remediator.model.base import AlertId, DeliveryId, IncidentId, new_id
from remediator.model.correlation import (
    Batch,
    Correlation,
    Episode,
    Joining,
    Note,
    Opening,
    Reported,
    Snapshot,
)
from remediator.model.fingerprint import apart_from
from remediator.model.incident import IncidentOutcome
from remediator.model.redact import redact_text
from remediator.model.severity import Handling, Rating
from remediator.model.unmatched import sender_of
from remediator.store.duplicates import may_repeat
from remediator.store.sender_events import SAID
from remediator.triage.digest import Gathering
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
        event = snapshot.events.get(delivery.id)
        if event is not None:
            draft.told(delivery, alerts, event)
            continue
        for alert in alerts:
            draft.take(delivery, alert)
    again = (d.id for d, alerts in batch if may_repeat(d, alerts) and draft.stands(alerts))
    return draft.correlation(frozenset(again))


@dataclass
class _Draft:
    """The decisions so far; later alerts of a batch see what earlier ones did."""

    snapshot: Snapshot
    now: datetime
    matching: Matching
    opened: dict[IncidentId, Opening] = field(default_factory=dict)
    joined: dict[AlertId, Joining] = field(default_factory=dict)
    resent: dict[AlertId, None] = field(default_factory=dict)
    left: dict[AlertId, AwareDatetime | None] = field(default_factory=dict)
    superseded: dict[AlertId, None] = field(default_factory=dict)
    adopted: dict[AlertId, Alert] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    events: dict[DeliveryId, str | None] = field(default_factory=dict)
    touched: dict[DeliveryId, dict[IncidentId, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gathering = Gathering(self.snapshot)
        self.episodes = dict(self.snapshot.episodes)
        self.open_incidents = dict(self.snapshot.open_incidents)
        self.records = {found: dict(of) for found, of in self.snapshot.records.items()}
        self.reported = dict(self.snapshot.reported)
        self.replays = {key: dict(found) for key, found in self.snapshot.replays.items()}

    def take(self, delivery: Delivery, alert: Alert) -> None:
        alert = self.told_apart(alert)
        if delivery.replay_of is not None:
            self.replay(delivery, alert)
        elif alert.status is AlertStatus.FIRING:
            self.firing(delivery, alert)
        else:
            self.resolved(delivery, alert)

    def told_apart(self, alert: Alert) -> Alert:
        """Return ``alert`` under another fingerprint where other labels have its own."""
        episode = self.episodes.get(alert.fingerprint)
        own = apart_from(alert.fingerprint, alert.labels)
        if own in self.episodes or not (episode is None or episode.is_of(alert)):
            return alert.model_copy(update={"fingerprint": own})
        return alert

    def firing(self, delivery: Delivery, alert: Alert) -> None:
        episode = self.episodes.get(alert.fingerprint)
        if episode is None:
            self._begin(delivery, alert)
        elif self._begins_anew(episode, alert, delivery):
            self._supersede(episode)
            self._begin(delivery, alert)
        elif episode.status is AlertStatus.FIRING:
            self._resend(delivery, episode)
            self._adopt(episode, alert)
        else:
            self._ignore(delivery, episode)

    def resolved(self, delivery: Delivery, alert: Alert) -> None:
        episode = self.episodes.get(alert.fingerprint)
        if episode is None:
            self._leave_replays(delivery, alert.fingerprint, alert.ends_at)
        if episode is None or episode.status is not AlertStatus.FIRING:
            return
        if alert.ends_at is not None and alert.ends_at < episode.starts_at:
            self._ignore(delivery, episode)
        else:
            self._leave(delivery, episode, alert.ends_at)

    def replay(self, delivery: Delivery, alert: Alert) -> None:
        if alert.status is not AlertStatus.FIRING:
            return
        match = self.matching(alert, delivery)
        incident = self._incident(match, alert, delivery)
        joining = self._join(delivery, incident, alert, match.rating, latest=False)
        if not delivery.dry_run:
            self.replays.setdefault(alert.fingerprint, {})[joining] = incident

    def stands(self, alerts: Sequence[Alert]) -> bool:
        """Say whether a repetition of ``alerts`` would find all of them firing, and leave it so.

        An incident that is closed later does not change that for what began before now.
        """
        return all(
            alert.starts_at <= self.now
            and (episode := self.episodes.get(self.told_apart(alert).fingerprint)) is not None
            and episode.status is AlertStatus.FIRING
            for alert in alerts
        )

    def correlation(self, repeatable: frozenset[DeliveryId]) -> Correlation:
        return Correlation(
            repeatable=repeatable,
            opened=tuple(self._told_of_all(opening) for opening in self.opened.values()),
            records=self.records,
            gathered=self.gathering.grown(),
            joined=tuple(self.joined.values()),
            resent=tuple(self.resent),
            left=tuple(self.left.items()),
            superseded=tuple(self.superseded),
            adopted=tuple(self.adopted.items()),
            notes=tuple(self.notes),
            told=self.events,
            deliveries={delivery: tuple(found) for delivery, found in self.touched.items()},
        )

    def _told_of_all(self, opening: Opening) -> Opening:
        """Say in a record's reason how many other names its alerts have, or what a digest is."""
        digest = self.gathering.grown().get(opening.id)
        if digest is not None:
            return opening.model_copy(update={"reason": digest.reason})
        mine = (joining for joining in self.joined.values() if joining.incident_id == opening.id)
        names = set() if opening.playbook else {joining.alert.name for joining in mine}
        if len(names) < 2:
            return opening
        reason = f"{opening.reason}; the same of alerts with {len(names) - 1} other names"
        return opening.model_copy(update={"reason": reason})

    def _begin(self, delivery: Delivery, alert: Alert) -> None:
        match = self.matching(alert, delivery)
        incident = self._incident(match, alert, delivery)
        self._join(delivery, incident, alert, match.rating)

    def _begins_anew(self, episode: Episode, alert: Alert, delivery: Delivery) -> bool:
        if episode.status is AlertStatus.FIRING:
            return episode.closed_at is not None and (
                # its resolve was lost
                (
                    alert.starts_at
                    > max(episode.closed_at, episode.starts_at)  # one record has many
                    and not _answered_for(episode, alert)
                )
                or (episode.unmatched and self.matching(alert, delivery).playbook is not None)
            )
        if alert.source is Source.PAGERDUTY:
            ended = episode.ends_at or episode.resolved_at
            return ended is None or alert.starts_at > ended
        if episode.source is Source.PAGERDUTY:  # a human resolved what fires
            return True
        if alert.starts_at > episode.starts_at:
            return True
        return episode.resolved_at is None or self.now - episode.resolved_at > STALE_WITHIN

    def _incident(self, match: Match, alert: Alert, delivery: Delivery) -> IncidentId:
        """Return the incident that ``alert`` belongs to, and open it where there is none."""
        mine = self.records.setdefault(delivery.id, {})
        key, replayed = match.key(alert), delivery.replay_of is not None
        gathers = key if match.playbook is not None else match.place
        known = None if replayed else self.open_incidents.get(key)
        if known is None and (replayed or match.playbook is None):
            known = mine.get(gathers)
        if known is not None:
            return known
        sender = sender_of(delivery) if match.playbook is None and not replayed else None
        if sender is not None and self.gathering.is_full(sender, match.place):
            return self._digest(match, sender)
        opening = Opening(
            id=IncidentId(new_id("inc", self.now)),
            correlation_key=f"{delivery.id}/{key}" if replayed else key,
            system=match.system,
            service=match.service,
            playbook=match.playbook,
            outcome=IncidentOutcome.NO_MATCH if match.playbook is None else None,
            reason=redact_text(
                match.reason
            ),  # sealed in the journal, where nothing can be masked later
            dry_run=delivery.dry_run if replayed else False,
            replay_of=delivery.replay_of,
            replayed_by=delivery.credential if replayed else None,
            handling=Handling.RECORDS if replayed and delivery.dry_run else match.handling,
            sender=sender,
        )
        self.opened[opening.id] = opening
        if not replayed:
            self.open_incidents[key] = opening.id
        if replayed or match.playbook is None:
            mine[gathers] = opening.id
        if sender is not None:
            self.gathering.opened(sender, match.place)
        return opening.id

    def _digest(self, match: Match, sender: str) -> IncidentId:
        """Return the record that takes what is over the sender's bound, and open it if need be."""
        known = self.gathering.digest(sender, match.place)
        if known is not None:
            return known
        opening = Opening(
            id=IncidentId(new_id("inc", self.now)),
            correlation_key=f"{match.place}/digest:{sender}",
            system=match.system,
            service=match.service,
            playbook=None,
            outcome=IncidentOutcome.NO_MATCH,
            reason=redact_text(match.reason),
            handling=match.handling,
            sender=sender,
        )
        self.opened[opening.id] = opening
        self.gathering.begin(sender, match.place, opening.id)
        return opening.id

    def _join(
        self,
        delivery: Delivery,
        incident: IncidentId,
        alert: Alert,
        rating: Rating,
        *,
        latest: bool = True,
    ) -> AlertId:
        joining = Joining(
            id=AlertId(new_id("alt", self.now)),
            incident_id=incident,
            alert=alert,
            latest=latest,
            rating=rating,
        )
        self.joined[joining.id] = joining
        self.gathering.joined(incident)
        self.touched[delivery.id][incident] = None
        if latest:
            self.episodes[alert.fingerprint] = Episode(
                id=joining.id,
                incident_id=incident,
                fingerprint=alert.fingerprint,
                status=alert.status,
                starts_at=alert.starts_at,
                resolved_at=None,
                source=alert.source,
                group_key=alert.group_key,
                labels=alert.labels,
            )
        return joining.id

    def _resend(self, delivery: Delivery, episode: Episode) -> None:
        if episode.id not in self.joined:
            self.resent[episode.id] = None
        self.touched[delivery.id][episode.incident_id] = None

    def _ignore(self, delivery: Delivery, episode: Episode) -> None:
        self.touched[delivery.id][episode.incident_id] = None

    def _leave(self, delivery: Delivery, episode: Episode, ends_at: datetime | None) -> None:
        self.left[episode.id] = ends_at
        self.touched[delivery.id][episode.incident_id] = None
        ended = {"status": AlertStatus.RESOLVED, "resolved_at": self.now, "ends_at": ends_at}
        self.episodes[episode.fingerprint] = episode.model_copy(update=ended)
        self._leave_replays(delivery, episode.fingerprint, ends_at)

    def _leave_replays(
        self, delivery: Delivery, fingerprint: str, ends_at: datetime | None
    ) -> None:
        """Let what was played again for real hear that its alert resolved."""
        for alert, incident in self.replays.pop(fingerprint, {}).items():
            self.left[alert] = ends_at
            self.touched[delivery.id][incident] = None

    def _supersede(self, episode: Episode) -> None:
        if episode.id in self.joined:
            joining = self.joined[episode.id]
            self.joined[episode.id] = joining.model_copy(update={"latest": False})
        else:
            self.superseded[episode.id] = None

    # --- senders of incidents -----------------------------------------------------------------

    def told(self, delivery: Delivery, alerts: Sequence[Alert], event: SenderEvent) -> None:
        """Take in what PagerDuty says happened to an incident of its own."""
        known = self.reported.get(event.incident or "")
        overtaken = None if event.status is None else _overtaken(event, known)
        self.events[delivery.id] = overtaken
        if event.status is None or overtaken is not None:
            self._note(event, known, overtaken or f"said by {event.who}")
            return
        if event.status is AlertStatus.FIRING:
            for alert in alerts:
                self.firing(delivery, self.told_apart(alert))
        else:
            self._end(delivery, event, known)
        touched = tuple(self.touched[delivery.id])
        newest = Reported(at=event.at, status=event.status, incidents=touched)
        if event.status is AlertStatus.FIRING:
            self._note(event, newest, f"said by {event.who}")
        if event.incident is not None:
            self.reported[event.incident] = newest

    def _end(self, delivery: Delivery, event: SenderEvent, known: Reported | None) -> None:
        """End the episodes that PagerDuty alone reported; of the others only a line is written."""
        for episode in list(self.episodes.values()):
            theirs = (episode.source, episode.group_key) == (Source.PAGERDUTY, event.group_key)
            if theirs and episode.status is AlertStatus.FIRING:
                self._leave(delivery, episode, min(event.at, delivery.received_at))
        left = set(self.touched[delivery.id])
        for incident in known.incidents if known is not None else ():
            self.touched[delivery.id][incident] = None
        by = f"{event.who} resolved it"
        others = f"{by}; alerts that Alertmanager reports end when it says so"
        self._note(event, known, others if set(self.touched[delivery.id]) - left else by)

    def _note(self, event: SenderEvent, known: Reported | None, reason: str) -> None:
        what = f"{SAID} {event.incident} {event.kind}"[:60]
        data = {"agent": event.agent, "at": event.at.isoformat(), "kind": event.kind}
        data["incident"] = event.incident
        for incident in known.incidents if known is not None else ():
            note = Note(incident_id=incident, event=what, reason=reason, data=data)
            self.notes.append(note)

    def _adopt(self, episode: Episode, alert: Alert) -> None:
        """Let ``alert``'s sender answer for the end of what PagerDuty alone reported so far."""
        same = (alert.source, alert.group_key) == (episode.source, episode.group_key)
        if episode.source is not Source.PAGERDUTY or same:
            return
        starts_at = min(episode.starts_at, alert.starts_at)
        mine = alert.model_copy(update={"starts_at": starts_at})
        if episode.id in self.joined:
            joining = self.joined[episode.id]
            self.joined[episode.id] = joining.model_copy(update={"alert": mine})
        else:
            self.adopted[episode.id] = mine
        answers = mine.model_dump(include={"source", "group_key", "starts_at", "labels"})
        self.episodes[alert.fingerprint] = episode.model_copy(update=answers)


def _answered_for(episode: Episode, alert: Alert) -> bool:
    """Say whether only Alertmanager can tell that the episode is over, and it was not asked."""
    return (episode.source, alert.source) == (Source.ALERTMANAGER, Source.PAGERDUTY)


def _overtaken(event: SenderEvent, known: Reported | None) -> str | None:
    """Say why the event changes nothing any more, if so."""
    if known is None:
        return None
    if event.at < known.at:
        return f"it is older than what is known since {known.at:%Y-%m-%d %H:%M:%S} UTC"
    ended = known.status is AlertStatus.RESOLVED and event.status is AlertStatus.FIRING
    if ended and not event.again:
        return "the incident was resolved before, and this does not open it again"
    return None
