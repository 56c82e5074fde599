"""PagerDuty's webhooks: what is read of them, who may send them, and what the REST API adds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from remediator.api.auth import Access
from remediator.api.body import BodyLimits
from remediator.api.listener import listening
from remediator.api.routing import STOPPING, build_app
from remediator.intake.pagerduty import FIRING, Told, alertname_of, parse
from remediator.intake.pagerduty_details import REFUSED, with_labels
from remediator.intake.pagerduty_webhook import (
    HEADER,
    MOST,
    OVER,
    PATH,
    SEVERAL,
    IncidentDoor,
    digest_of,
    is_signed,
    pagerduty_routes,
    sign,
    signatures_of,
)
from remediator.model.alert import Alert, AlertStatus, DeadLetter, Delivery, SenderEvent, Source
from remediator.model.base import DeliveryId, IncidentId
from remediator.model.errors import RejectedDelivery, StoreUnavailable
from remediator.model.fingerprint import fingerprint_of

SAMPLES = Path(__file__).parent.parent / "samples"
JSON = {"Content-Type": "application/json"}
BODY = (SAMPLES / "pd_incident_triggered.json").read_bytes()
NOW = datetime(2026, 11, 20, 15, 49, tzinfo=UTC)
OLD, NEW = b"the-old-secret", b"the-new-secret"


def told(kind: str = "incident.triggered", data: Any = None, **event: Any) -> Told:
    """Parse the sample with other values."""
    body = json.loads(BODY)
    body["event"] |= {"event_type": kind, **event}
    body["event"]["data"] |= data or {}
    return parse(json.dumps(body).encode(), "webhook-1", NOW)


def only(kind: str = "incident.triggered", data: Any = None, **event: Any) -> Alert:
    (alert,) = told(kind, data, **event).alerts
    return alert


# --- the body -----------------------------------------------------------------------------------


def test_a_triggered_incident_is_an_alert_with_what_the_webhook_says() -> None:
    read = parse(BODY, "webhook-1", NOW)
    assert read.event is not None
    assert read.event.id == "01BWGGKUG5PNSJ0ZLQXVT5QYHP"
    assert (read.event.webhook, read.event.kind) == ("webhook-1", "triggered")
    assert read.event.incident == "PGR0VU2"
    assert read.event.agent == {"id": "PLH1HKV", "type": "user_reference", "name": "Jo Doe"}
    assert read.event.at == datetime(2026, 11, 20, 15, 48, 31, 169000, tzinfo=UTC)
    (alert,) = read.alerts
    assert alert.source is Source.PAGERDUTY
    assert alert.status is AlertStatus.FIRING
    assert alert.labels == {
        "alertname": "DatabaseConnectionPoolExhausted",
        "pagerduty_service": "PF9KMXH",
        "pagerduty_incident": "PGR0VU2",
        "urgency": "high",
    }
    assert alert.annotations["pagerduty_url"] == "https://example.pagerduty.com/incidents/PGR0VU2"
    assert alert.starts_at == datetime(2026, 11, 20, 15, 48, 31, tzinfo=UTC)


@pytest.mark.parametrize("kind", sorted(FIRING))
def test_what_says_that_nobody_has_the_incident_fires(kind: str) -> None:
    assert only(f"incident.{kind}").status is AlertStatus.FIRING


def test_an_incident_that_is_opened_again_fires_since_then() -> None:
    alert = only("incident.reopened", occurred_at="2026-11-20T15:48:30Z")
    assert alert.starts_at == datetime(2026, 11, 20, 15, 48, 30, tzinfo=UTC)


def test_an_event_of_a_time_to_come_counts_as_of_its_receipt() -> None:
    read = told("incident.resolved", occurred_at="9999-11-20T16:00:00Z")
    assert read.event is not None
    assert read.event.at == read.alerts[0].ends_at == NOW
    assert read.alerts[0].starts_at <= NOW


def test_a_resolved_incident_is_resolved_since_then() -> None:
    alert = only("incident.resolved", occurred_at="2026-11-20T15:48:30Z")
    assert (alert.status, alert.ends_at) == (
        "resolved",
        datetime(2026, 11, 20, 15, 48, 30, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    "kind", ["incident.acknowledged", "incident.reassigned", "incident.priority_updated"]
)
def test_other_events_of_an_incident_open_nothing_and_name_it(kind: str) -> None:
    read = told(kind)
    assert read.event is not None
    assert (read.event.status, read.event.incident) == (None, "PGR0VU2")
    assert (read.alerts, read.dead) == ((), ())


@pytest.mark.parametrize(
    "kind", ["pagey.ping", "service.updated", "incident.annotated", "incident", "x.y.z"]
)
def test_pings_notes_and_unknown_events_are_about_no_incident_of_ours(kind: str) -> None:
    read = told(kind, {"id": "X Y"} if kind == "incident" else None)
    assert read.event is not None
    assert (read.event.status, read.event.incident) == (None, None)
    assert (read.alerts, read.dead) == ((), ())


@pytest.mark.parametrize("kind", ["triggered", "acknowledged", "resolved"])
def test_our_own_escalations_coming_back_are_silent_and_keep_who_did_it(kind: str) -> None:
    read = told(f"incident.{kind}", {"incident_key": "remediator/inc-1"})
    assert read.event is not None
    assert (read.event.status, read.event.incident) == (None, None)
    assert (read.event.key, read.event.kind, read.event.who) == ("remediator/inc-1", kind, "Jo Doe")
    assert (read.alerts, read.dead) == ((), ())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_rejected(body: bytes) -> None:
    with pytest.raises(RejectedDelivery):
        parse(body, None, NOW)


@pytest.mark.parametrize("event", [None, [], {}, "x", {"event_type": 1}, {"event_type": ""}])
def test_an_object_that_is_no_event_is_a_dead_letter_and_no_error(event: Any) -> None:
    read = parse(json.dumps({"event": event}).encode(), None, NOW)
    assert read.event is None
    assert "event_type" in read.dead[0].reason


@pytest.mark.parametrize("name", [None, "", 7, "a b", "../x", "a/b", "x" * 65])
def test_an_incident_without_a_usable_id_is_a_dead_letter(name: Any) -> None:
    assert told(data={"id": name}).dead
    assert told("incident.acknowledged", {"id": name}).dead == ()


def test_a_time_that_cannot_be_read_is_the_time_of_receipt() -> None:
    for text in ("yesterday", "2026-11-20T15:48:31", "0001-01-01T00:00:00+14:00", None, 5):
        read = told(occurred_at=text, data={"created_at": text})
        assert read.event is not None
        assert read.event.at == read.alerts[0].starts_at == NOW


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("[FIRING:1] PoolExhausted shop (orders critical)", "PoolExhausted"),
        ("[FIRING:12] PoolExhausted ", "PoolExhausted"),
        ("[RESOLVED] PoolExhausted x", "PoolExhausted"),
        ("[FIRING:1] [prod] PoolExhausted", "PoolExhausted"),
        ("[P1] The pool is exhausted", "The pool is exhausted"),
        ("The pool  is\nexhausted", "The pool is exhausted"),
        ("[FIRING:1] ", "unnamed"),
        ("", "unnamed"),
        ("x" * 500, "x" * 200),
    ],
)
def test_the_name_of_the_alert_is_taken_from_the_title(title: str, name: str) -> None:
    assert alertname_of(title) == name


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@given(
    kind=st.sampled_from(["incident.triggered", "incident.resolved", "pagey.ping", 4]) | st.text(),
    event=st.dictionaries(
        st.sampled_from(["id", "occurred_at", "agent", "data", "event_type"]), json_values
    ),
    data=st.dictionaries(
        st.sampled_from(["id", "title", "service", "urgency", "created_at", "incident_key"]),
        json_values,
    ),
)
def test_any_object_is_read_as_something_that_can_be_stored(
    kind: Any, event: dict[str, Any], data: dict[str, Any]
) -> None:
    content = {"event": {"event_type": kind, "data": {"id": "P1", "type": "incident"} | data}}
    content["event"] |= event
    read = parse(json.dumps(content).encode(), "w", NOW)
    for alert in read.alerts:
        assert alert.labels["pagerduty_incident"]
        assert "\0" not in alert.model_dump_json()
    assert read.event is not None or read.dead
    if read.event is not None:
        assert len(read.event.id) <= 128
        assert len(read.event.kind) <= 60


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_rejected(body: bytes) -> None:
    try:
        parse(body, None, NOW)
    except RejectedDelivery:
        return


# --- what the REST API adds ---------------------------------------------------------------------

LABELS = {"alertname": "PoolExhausted", "system": "shop", "service": "orders"}
TEXT = """Labels:
 - alertname = PoolExhausted
 - service = orders
 - system = shop
Annotations:
 - summary = every connection
is = in use
Source: http://prometheus:9090/graph?g0.expr=x
"""


def fires(text: str, count: int = 1) -> dict[str, str]:
    """Write the details of Alertmanager's own template."""
    return {"firing": text, "num_firing": str(count), "resolved": "", "num_resolved": "0"}


def listed(details: Any, **more: Any) -> dict[str, Any]:
    return {"id": "PT4KHLK", "status": "triggered", "body": {"details": details}} | more


@pytest.mark.parametrize(
    "details",
    [
        {"labels": LABELS, "firing": "Labels:\n - alertname = Other\n"},
        {"firing": TEXT, "num_firing": "1", "resolved": "", "service": "other"},
        {"firing": TEXT.replace("\n", "\r\n"), "num_firing": 1},
        {"firing": json.dumps([{"status": "firing", "labels": LABELS}]), "num_firing": "1"},
        {"firing": [{"status": "firing", "labels": LABELS}]},
    ],
)
def test_labels_that_came_through_alertmanager_make_the_same_identity(details: Any) -> None:
    (alert,) = with_labels(only(), [listed(details)])
    assert alert.fingerprint == fingerprint_of(LABELS)
    assert LABELS.items() <= alert.labels.items()
    assert alert.labels["pagerduty_service"] == "PF9KMXH"
    assert alert.group_key == only().group_key


def test_annotations_of_several_lines_stay_annotations() -> None:
    (alert,) = with_labels(only(), [listed(fires(TEXT))])
    assert alert.annotations["summary"] == "every connection\nis = in use"


def test_details_are_found_in_the_common_format_too() -> None:
    body = {"details": None, "cef_details": {"details": fires(TEXT), "severity": "critical"}}
    (alert,) = with_labels(only(), [listed({}, body=body)])
    assert alert.labels["system"] == "shop"


def test_every_alert_of_a_group_is_one() -> None:
    other = TEXT.replace("orders", "billing")
    alerts = with_labels(only(), [listed(fires(TEXT + other, 2))])
    assert [alert.labels["service"] for alert in alerts] == ["orders", "billing"]


def test_an_annotation_that_looks_like_an_alert_makes_none() -> None:
    lines = "Labels:\n - alertname = Evil\n - service = payments"
    (alert,) = with_labels(only(), [listed(fires(TEXT.replace("is = in use", lines)))])
    assert alert.labels["service"] == "orders"
    whole = f"Source: x\n{lines}\nAnnotations:\n - a = b"
    (alert,) = with_labels(only(), [listed(fires(TEXT.replace("is = in use", whole)))])
    assert alert.labels == only().labels
    assert "has 2 alerts, and num_firing says '1'" in alert.annotations[REFUSED]


@pytest.mark.parametrize(
    ("line", "forged", "reason"),
    [
        ("service = orders", "service = orders\n - severity = critical\n - system = x", "twice"),
        ("service = orders", "service = orders\n - env = prod", "'env' comes after 'service'"),
        ("service = orders", "service = orders\nand more", "'service' has several lines"),
        ("service = orders", "service = orders\n", "'service' has several lines"),
        ("service = orders", "service = orders\nSource: x", "'service' has several lines"),
        ("system = shop", "system = shop\n - alertname = Evil", "'alertname' is given twice"),
        ("system = shop", "system = shop\nAnnotations:\n - a = b\nSource: x", "nowhere"),
    ],
)
def test_a_value_with_line_breaks_forges_no_labels(line: str, forged: str, reason: str) -> None:
    (alert,) = with_labels(only(), [listed(fires(TEXT.replace(line, forged)))])
    assert alert.labels == only().labels
    assert alert.fingerprint == only().fingerprint
    assert reason in alert.annotations[REFUSED]


def test_a_label_that_looks_like_another_in_the_title_is_not_believed_in_the_text() -> None:
    title = "[FIRING:1] PoolExhausted (orders\n - severity = critical shop)"
    notes = {"summary": title}
    plain = only().model_copy(update={"annotations": notes})
    forged = TEXT.replace("service = orders", "service = orders\n - severity = critical")
    (alert,) = with_labels(plain, [listed(fires(forged))])
    assert alert.labels == only().labels
    assert "looks like another label" in alert.annotations[REFUSED]


def test_a_text_that_does_not_say_how_many_alerts_it_lists_is_not_believed() -> None:
    (alert,) = with_labels(only(), [listed({"firing": TEXT})])
    assert alert.labels == only().labels
    assert "num_firing is missing" in alert.annotations[REFUSED]


def test_structured_labels_go_before_a_text_whatever_it_says() -> None:
    forged = fires(TEXT.replace("system = shop", "system = shop\n - alertname = Evil"))
    (alert,) = with_labels(only(), [listed({"labels": LABELS, **forged})])
    assert alert.labels["system"] == "shop"
    assert REFUSED not in alert.annotations


def test_plain_texts_are_labels_where_nothing_better_is_there() -> None:
    (alert,) = with_labels(only(), [listed({"service": "orders", "n": 4, "deep": {"x": "y"}})])
    assert alert.fingerprint == "pagerduty/PT4KHLK"
    assert alert.labels["service"] == "orders"
    assert alert.labels["alertname"] == "DatabaseConnectionPoolExhausted"
    assert "n" not in alert.labels


def test_details_cannot_pretend_to_be_of_another_service_of_pagerduty() -> None:
    for details in (
        {"labels": LABELS | {"pagerduty_service": "PEVIL"}},
        {"pagerduty_service": "P"},
    ):
        (alert,) = with_labels(only(), [listed(details)])
        assert alert.labels["pagerduty_service"] == "PF9KMXH"


@pytest.mark.parametrize(
    "items",
    [
        [],
        [None, 4, "x", []],
        [{"body": None}, {"body": {"details": "just text"}}],
        [listed({"labels": {"a": "b" * 5000}})],
        [listed({"labels": {str(n): "x" for n in range(65)}})],
        [listed({"firing": TEXT}, status="resolved")],
    ],
)
def test_without_labels_that_can_be_used_the_webhook_speaks_for_itself(items: list[Any]) -> None:
    assert with_labels(only(), items) == (only(),)


def test_our_own_escalations_are_known_by_their_key() -> None:
    ours = listed({"labels": LABELS}, alert_key="remediator/inc-1")
    assert with_labels(only(), [ours]) == ()
    assert len(with_labels(only(), [ours, listed({"labels": LABELS})])) == 1


@given(st.lists(json_values | st.fixed_dictionaries({"body": json_values}), max_size=3))
def test_any_answer_gives_alerts_within_bounds(items: list[Any]) -> None:
    for alert in with_labels(only(), items):
        assert len(alert.labels) <= 64 + 4
        assert "\0" not in alert.model_dump_json()


@given(st.text() | st.text(alphabet="Labels:Annotations \n-=ab"))
def test_any_text_that_fires_gives_alerts_with_names_or_none(text: str) -> None:
    for alert in with_labels(only(), [listed({"firing": text})]):
        assert alert.labels["alertname"]


@pytest.mark.parametrize("name", ["am_firing_single", "am_firing_group3", "am_resolved_group3"])
def test_fingerprints_are_those_of_a_real_alertmanager(name: str) -> None:
    for alert in json.loads((SAMPLES / f"{name}.json").read_text())["alerts"]:
        assert fingerprint_of(alert["labels"]) == alert["fingerprint"]


# --- the signature ------------------------------------------------------------------------------


def test_any_of_several_signatures_by_any_of_several_secrets_will_do() -> None:
    both = f"{sign(BODY, b'another')}, {sign(BODY, OLD)}"
    assert is_signed(BODY, signatures_of([both]), [NEW, OLD])
    assert is_signed(BODY, signatures_of([sign(BODY, b"another"), sign(BODY, NEW)]), [NEW])
    assert not is_signed(BODY, signatures_of([both]), [NEW])
    assert not is_signed(BODY + b" ", signatures_of([both]), [OLD])
    assert not is_signed(BODY, signatures_of([both]), [])


@pytest.mark.parametrize("text", ["", "v1=", "v1=zz", "v2={}", "{}", "v1={}00", "v1 ={}", "v1= {}"])
def test_what_is_no_version_1_signature_is_none(text: str) -> None:
    assert signatures_of([text.format(sign(BODY, OLD).removeprefix("v1="))]) == ()


@given(st.lists(st.text(max_size=200), max_size=5), st.binary(max_size=50))
def test_no_header_is_good_without_the_secret(headers: list[str], body: bytes) -> None:
    assert not is_signed(body, signatures_of(headers), [OLD, NEW])


@given(st.lists(st.text(alphabet="v1=0af, ", max_size=80), max_size=3), st.binary(min_size=1))
def test_a_good_signature_is_found_among_others(noise: list[str], secret: bytes) -> None:
    headers = [text.replace(",", " ") for text in noise]
    assert is_signed(BODY, signatures_of([*headers, sign(BODY, secret)]), [secret])


def test_only_so_many_signatures_are_looked_at() -> None:
    assert len(signatures_of([",".join([sign(BODY, OLD)] * 1000)])) == MOST


def test_a_set_of_secrets_has_one_name_in_any_order() -> None:
    assert digest_of([OLD, NEW]) == digest_of([NEW, OLD, NEW])
    assert len({digest_of([OLD, NEW]), digest_of([OLD]), digest_of([])}) == 3


# --- the door -----------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Keeps what is taken, as the store would."""

    secrets: Sequence[bytes] = (OLD, NEW)
    good: set[str] = field(default_factory=set)
    paged: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """The door's clock."""
    events: list[SenderEvent] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    overload: str | None = None
    failure: Exception | None = None

    async def verified(self, secrets: str) -> bool:
        return secrets in self.good

    async def verify(self, secrets: str) -> None:
        self.good.add(secrets)

    async def page(self, secrets: str, reason: str) -> bool:
        return self.paged.setdefault(secrets, reason) is reason


@dataclass
class Inbox:
    """The inbox's side of the recorder."""

    kept: Recorder

    async def put(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> DeliveryId:
        self.kept.deliveries.append(delivery)
        self.kept.dead += dead
        return delivery.id

    async def replay(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> list[IncidentId]:
        raise AssertionError("a webhook is no replay")


@dataclass
class EventsOf:
    """The events' side of the recorder."""

    kept: Recorder

    async def put(
        self, delivery: Delivery, event: SenderEvent, alerts: Sequence[Alert]
    ) -> DeliveryId:
        if self.kept.failure is not None:
            raise self.kept.failure
        self.kept.events.append(event)
        self.kept.deliveries.append(delivery)
        return delivery.id

    async def verified(self, secrets: str) -> bool:
        return await self.kept.verified(secrets)

    async def verify(self, secrets: str) -> None:
        await self.kept.verify(secrets)

    async def page(self, secrets: str, reason: str) -> bool:
        return await self.kept.page(secrets, reason)


@dataclass
class Door:
    """A running door."""

    kept: Recorder
    client: httpx.AsyncClient
    stopping: asyncio.Event

    async def post(self, body: bytes = BODY, *secrets: bytes, **headers: str) -> httpx.Response:
        signed = {HEADER: ",".join(sign(body, secret) for secret in secrets)} if secrets else {}
        return await self.client.post(PATH, content=body, headers=signed | headers)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    kept = Recorder()
    made = IncidentDoor(
        inbox=Inbox(kept),
        events=EventsOf(kept),
        secrets=lambda: kept.secrets,
        overloaded=lambda: kept.overload,
        refused=kept.refused.append,
        limits=BodyLimits(max_body=100_000, timeout=0.3),
        clock=lambda: kept.seconds,
    )
    app = build_app(pagerduty_routes(made), Access([]))
    async with (
        listening(app, "127.0.0.1", 0) as (host, port),
        httpx.AsyncClient(
            base_url=f"http://{host}:{port}",
            headers=JSON,
            trust_env=False,
            verify=False,
        ) as client,
    ):
        yield Door(kept, client, app[STOPPING])


@pytest.mark.parametrize("signers", [[OLD], [NEW], [OLD, NEW], [b"a third", NEW]])
async def test_what_is_signed_is_taken(door: Door, signers: list[bytes]) -> None:
    answer = await door.post(BODY, *signers)
    assert answer.status_code == 202
    (delivery,) = door.kept.deliveries
    assert answer.json() == {"delivery": delivery.id, "alerts": 1, "dead": 0}
    assert (delivery.source, delivery.body) == (Source.PAGERDUTY, BODY)


async def test_a_ping_is_taken_and_has_no_alert(door: Door) -> None:
    body = BODY.replace(b"incident.triggered", b"pagey.ping")
    answer = await door.post(body, OLD)
    assert (answer.status_code, answer.json()["alerts"]) == (202, 0)


async def test_without_a_signature_nobody_is_let_in_and_nothing_is_kept(door: Door) -> None:
    answer = await door.post()
    assert answer.status_code == 401
    assert not door.kept.deliveries
    assert door.kept.refused == ["no_signature"]
    door.kept.secrets = ()
    assert (await door.post()).status_code == 401
    assert not door.kept.paged


async def test_without_a_secret_of_ours_the_sender_comes_again_and_we_are_paged_once(
    door: Door,
) -> None:
    door.kept.secrets = ()
    with capture_logs() as logs:
        for _ in range(SEVERAL + 2):
            answer = await door.post(BODY, OLD)
            door.kept.seconds += OVER / (SEVERAL - 1)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
    (reason,) = door.kept.paged.values()
    assert "signing_secret_files" in reason
    assert len([log for log in logs if log["event"] == "pagerduty_misconfigured"]) == 1
    assert "signing_secret_files" not in answer.text
    assert not door.kept.deliveries


async def test_a_wrong_signature_is_503_until_the_secrets_were_proven_and_401_from_then_on(
    door: Door,
) -> None:
    assert (await door.post(BODY, b"forged")).status_code == 503
    assert (await door.post(BODY, b"forged")).status_code == 503
    assert (await door.post(BODY, NEW)).status_code == 202
    assert (await door.post(BODY, b"forged")).status_code == 401
    assert len(door.kept.deliveries) == 1
    assert door.kept.refused == ["signing_secret", "signing_secret", "bad_signature"]


@pytest.mark.parametrize(
    ("times", "seconds"), [(1, 0.0), (SEVERAL - 1, OVER), (10 * SEVERAL, OVER / 1000)]
)
async def test_a_bad_signature_before_the_first_good_one_calls_nobody_until_it_goes_on(
    door: Door, times: int, seconds: float
) -> None:
    for _ in range(times):
        assert (await door.post(BODY, b"forged")).status_code == 503
        door.kept.seconds += seconds
    assert not door.kept.paged
    for _ in range(SEVERAL):
        door.kept.seconds += OVER
        assert (await door.post(BODY, b"forged")).status_code == 503
    assert len(door.kept.paged) == 1


async def test_a_proof_is_of_that_set_of_secrets_and_outlives_the_process(door: Door) -> None:
    door.kept.good.add(digest_of([OLD, NEW]))
    assert (await door.post(BODY, b"forged")).status_code == 401
    door.kept.secrets = (NEW,)
    assert (await door.post(BODY, OLD)).status_code == 503


async def test_the_signature_is_checked_before_the_body_is_looked_at(door: Door) -> None:
    door.kept.good.add(digest_of([OLD, NEW]))
    assert (await door.post(b"no json", b"forged")).status_code == 401
    assert not door.kept.dead
    answer = await door.post(b"no json", OLD)
    assert answer.status_code == 400
    assert "not JSON" in door.kept.dead[0].reason


async def test_an_event_that_cannot_be_used_is_taken_as_a_dead_letter(door: Door) -> None:
    answer = await door.post(b'{"event": {"event_type": "incident.triggered"}}', OLD)
    assert (answer.status_code, answer.json()["dead"]) == (202, 1)
    assert "event.data.id" in door.kept.dead[0].reason


async def test_too_large_and_too_slow_are_said_and_nothing_is_kept_of_strangers(door: Door) -> None:
    assert (await door.post(b"x" * 100_001, OLD)).status_code == 413

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(1)

    headers = {HEADER: sign(BODY, OLD)}
    answer = await door.client.post(PATH, content=slowly(), headers=headers)
    assert answer.status_code == 408
    assert not door.kept.deliveries


async def test_what_cannot_be_stored_is_sent_again(door: Door) -> None:
    door.kept.failure = StoreUnavailable("the store is down")
    assert (await door.post(BODY, OLD)).status_code == 503
    door.kept.failure, door.kept.overload = None, "2001 writes wait"
    assert (await door.post(BODY, OLD)).status_code == 503
    door.kept.overload = None
    door.stopping.set()
    assert (await door.post(BODY, OLD)).status_code == 503


async def test_no_secret_and_no_signature_is_ever_logged_or_answered(door: Door) -> None:
    with capture_logs() as logs:
        answers = [await door.post(BODY, b"forged"), await door.post(BODY, NEW)]
        answers += [await door.post(BODY, b"forged"), await door.post()]
    shown = json.dumps(logs, default=str) + "".join(answer.text for answer in answers)
    for secret in ("the-old", "the-new", sign(BODY, NEW)[3:], sign(BODY, b"forged")[3:]):
        assert secret not in shown
