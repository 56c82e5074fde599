"""Clicks in Slack: nothing is believed unsigned, and nobody may do what they may not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from slack_sdk.signature import SignatureVerifier
from structlog.testing import capture_logs

from remediator.api.auth import Access
from remediator.api.listener import listening
from remediator.api.routing import FORM, build_app
from remediator.cli.demo.slack import LocalSlack, SlackMessage, sign
from remediator.intake.slack_actions import (
    PATH,
    Click,
    Desk,
    read_click,
    signature_fault,
    slack_routes,
)
from remediator.model.access import Principal, Role
from remediator.model.errors import Refused, RejectedDelivery, StoreUnavailable
from remediator.model.incident import Phase
from remediator.model.mitigation import Consent, MitigationState
from remediator.model.views import Button, PlanReference
from remediator.notify.report import summarise
from remediator.notify.slack_blocks import draw, draw_request
from remediator.notify.slack_replies import SlackReplies
from tests.incident_views import ID, START, mitigation, open_in

SECRET = "local-signing-secret"
NOW = datetime(2026, 11, 21, 4, tzinfo=UTC)
HASH = "0123456789abcdef"
PLAN = PlanReference(incident_id=ID, plan_hash=HASH)
ANN, BOB, VIEWER, STRANGER = "U0ANN", "U0BOB", "U0WALL", "U0EVE"
PEOPLE = {
    ANN: Principal("ann", Role.OPERATOR),
    BOB: Principal("bob", Role.ADMIN),
    VIEWER: Principal("wall", Role.VIEWER),
}


@dataclass
class Orders:
    """Stands for the store: keeps what was ordered, refuses or fails as it is told."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    noted: list[tuple[str, str, str, dict[str, str]]] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    failure: Exception | None = None
    needed: int = 1
    hold: asyncio.Event | None = None

    async def order(self, *what: Any) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        self.asked.append(what)

    async def approve(
        self, incident_id: str, plan_hash: str | None, by: str, *, via: str
    ) -> Consent:
        await self.order("approve", incident_id, plan_hash, by, via)
        return Consent(given=1, needed=self.needed)

    async def reject(
        self, incident_id: str, plan_hash: str | None, by: str, reason: str, *, via: str
    ) -> None:
        await self.order("reject", incident_id, plan_hash, by, via)

    async def waits_for(self, incident_id: str, plan_hash: str) -> str:
        await self.order("waits_for", incident_id, plan_hash)
        return "shop/orders"

    async def pause(self, scope: str, by: str, reason: str) -> None:
        await self.order("pause", scope, by)

    async def acknowledge(self, incident_id: str, by: str) -> None:
        await self.order("acknowledge", incident_id, by)

    async def note(self, incident_id: str, event: str, by: str, reason: str, **detail: str) -> None:
        self.noted.append((event, by, reason, {"incident": incident_id, **detail}))

    async def take(self, click: str) -> bool:
        known = click in self.taken
        self.taken.add(click)
        return not known


@dataclass
class Server:
    """A running route, with what stands for the store and for Slack."""

    orders: Orders
    slack: LocalSlack
    url: str
    now: datetime = NOW
    refused: list[str] = field(default_factory=list)
    client: httpx.AsyncClient = field(init=False)

    def body(self, label: str = "Approve", user: str = ANN) -> bytes:
        return self.slack.press(buttons()[label], user)

    async def click(self, label: str = "Approve", user: str = ANN) -> httpx.Response:
        return await self.send(self.body(label, user))

    async def send(self, body: bytes, **headers: str) -> httpx.Response:
        signed = sign(body, SECRET, self.now.timestamp()) | headers
        return await self.client.post(PATH, content=body, headers=signed)

    async def said(self, count: int = 1) -> str:
        """Wait until the one who clicked was told ``count`` times; return the last."""
        await self.slack.wait_for(lambda s: len(s.told) >= count, 5)
        return self.slack.told[-1]


def buttons() -> dict[str, dict[str, Any]]:
    """The buttons of a message about a plan that waits, as Slack has them."""
    waiting = mitigation(MitigationState.AWAITING_APPROVAL, plan_hash=HASH)
    report = summarise(open_in(Phase.APPROVAL, mitigations=[waiting]))
    (request,) = report.requests
    drawn = draw_request(report, request, "", buttons=True)
    blocks = [block.to_dict() for block in drawn.blocks]
    return SlackMessage("C", "1", "", blocks).buttons


@asynccontextmanager
async def serving(*, secret: str | None = SECRET, desk: bool = True) -> AsyncIterator[Server]:
    async with LocalSlack() as slack:
        orders = Orders()
        server = Server(orders, slack, "")
        counter = Desk(
            secret=lambda: secret,
            people=PEOPLE,
            orders=orders,
            clicks=orders,
            replies=SlackReplies(slack.api_url, timeout=5),
            refused=server.refused.append,
            answer_within=0.2,
            now=lambda: NOW,
        )
        app = build_app(slack_routes(counter if desk else None), Access(()))
        async with (
            listening(app, "127.0.0.1", 0) as (host, port),
            httpx.AsyncClient(
                base_url=f"http://{host}:{port}",
                headers={"Content-Type": FORM},
                trust_env=False,
                verify=False,
                timeout=5,
            ) as client,
        ):
            server.url, server.client = f"http://{host}:{port}", client
            yield server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


# --- the right one ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "expected", "said"),
    [
        ("Approve", [("approve", ID, HASH, "ann", "slack")], "Approved: it goes ahead."),
        ("Reject", [("reject", ID, HASH, "ann", "slack")], "Rejected"),
        ("Pause service", [("waits_for", ID, HASH), ("pause", "shop/orders", "ann")], "Paused"),
        ("I take over", [("waits_for", ID, HASH), ("acknowledge", ID, "ann")], "It is yours"),
    ],
)
async def test_a_press_is_carried_out_once_for_an_approver_who_is_told(
    server: Server, label: str, expected: list[Any], said: str
) -> None:
    answer = await server.click(label)
    assert (answer.status_code, answer.content) == (200, b"")
    assert said in await server.said()
    assert server.orders.asked == expected


async def test_the_first_of_two_is_told_that_somebody_else_is_needed(server: Server) -> None:
    server.orders.needed = 2
    await server.click()
    assert await server.said() == "Approved, 1 of 2: somebody else must approve it too."


async def test_what_is_no_decision_on_the_plan_is_noted_at_its_incident(server: Server) -> None:
    await server.click("Pause service", BOB)
    await server.said()
    ((event, by, _, detail),) = server.orders.noted
    assert (event, by) == ("pressed: pause", "bob")
    assert detail == {"incident": ID, "via": "slack", "user": BOB, "plan": HASH}


async def test_without_an_address_for_replies_the_answer_itself_says_it(server: Server) -> None:
    for url in ("", "http://127.0.0.1:1/elsewhere", "https://evil.example.com/hooks.slack.com"):
        answer = await server.send(rewritten(server.body(), response_url=url))
        assert answer.status_code == 200
        assert answer.json()["response_type"] == "ephemeral"
        assert answer.json()["replace_original"] is False
        assert "goes ahead" in answer.json()["text"]
    assert server.slack.told == []


def rewritten(body: bytes, **changes: Any) -> bytes:
    """Change single fields of a payload."""
    payload = json.loads(httpx.QueryParams(body.decode())["payload"])
    return urlencode({"payload": json.dumps(payload | changes)}).encode()


# --- the wrong one ------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["Approve", "Reject", "Pause service", "I take over"])
@pytest.mark.parametrize(
    ("user", "by", "why"),
    [
        (STRANGER, "Slack user U0EVE", "add slack: U0EVE to approvers"),
        (VIEWER, "wall", "wall has the role viewer, which may not decide"),
    ],
)
async def test_who_may_not_decide_is_refused_told_and_noted(
    server: Server, label: str, user: str, by: str, why: str
) -> None:
    answer = await server.click(label, user)
    assert answer.status_code == 200
    assert why in await server.said()
    assert server.orders.asked == []
    ((event, who, reason, detail),) = server.orders.noted
    assert event == f"refused: {Button(buttons()[label]['action_id']).word}"
    assert (who, detail["user"], detail["plan"]) == (by, user, HASH)
    assert why in reason


@pytest.mark.parametrize("label", ["Approve", "Reject", "Pause service", "I take over"])
async def test_an_old_click_is_refused_with_the_reason_and_noted(
    server: Server, label: str
) -> None:
    server.orders.failure = Refused(409, "the plan expired at noon")
    answer = await server.click(label)
    assert answer.status_code == 200
    assert await server.said() == "Not done: the plan expired at noon."
    assert server.orders.asked == []
    assert [(by, reason) for _, by, reason, _ in server.orders.noted] == [
        ("ann", "the plan expired at noon")
    ]


async def test_the_same_signed_request_does_nothing_twice(server: Server) -> None:
    body = server.body("Pause service")
    first, second = await server.send(body), await server.send(body)
    assert (first.status_code, second.status_code) == (200, 200)
    assert "was taken before" in await server.said(2)
    assert [one[0] for one in server.orders.asked] == ["waits_for", "pause"]


async def test_what_a_reason_quotes_is_inert(server: Server) -> None:
    server.orders.failure = Refused(409, "<!channel> *x* <https://evil|bank>")
    body = rewritten(server.body(), response_url="")
    answer = (await server.send(body)).json()
    assert "<" not in answer["text"]
    (block,) = answer["blocks"]
    assert block["text"]["type"] == "plain_text"


# --- not believed -------------------------------------------------------------------------------


def forged(body: bytes, **changes: str) -> dict[str, str]:
    return sign(body, SECRET, NOW.timestamp()) | changes


@pytest.mark.parametrize(
    "case", ["secret", "body", "stamp", "none", "empty", "no stamp", "version", "not ascii"]
)
async def test_a_forged_request_is_401_and_leaves_nothing(server: Server, case: str) -> None:
    body = server.body()
    headers = {
        "secret": sign(body, "another-secret", NOW.timestamp()),
        "body": sign(body + b"&x=1", SECRET, NOW.timestamp()),
        "stamp": forged(body, **{"X-Slack-Request-Timestamp": str(int(NOW.timestamp()) + 1)}),
        "none": {},
        "empty": forged(body, **{"X-Slack-Signature": ""}),
        "no stamp": forged(body, **{"X-Slack-Request-Timestamp": "soon"}),
        "version": forged(body, **{"X-Slack-Signature": "v1=" + "0" * 64}),
        "not ascii": forged(body),
    }[case]
    if case == "not ascii":
        wire = [(k.encode(), v.encode()) for k, v in headers.items() if "Signature" not in k]
        answer = await server.client.post(
            PATH, content=body, headers=[*wire, (b"X-Slack-Signature", "v0=é".encode())]
        )
    else:
        answer = await server.client.post(PATH, content=body, headers=headers)
    assert answer.status_code == 401, answer.text
    assert server.refused == ["slack_signature"]
    assert (server.orders.asked, server.orders.noted, server.orders.taken) == ([], [], set())
    assert SECRET not in answer.text


@pytest.mark.parametrize("late", [-301, 301, 86_400])
async def test_a_late_or_early_signature_is_401(server: Server, late: int) -> None:
    server.now = NOW - timedelta(seconds=late)
    answer = await server.click()
    assert answer.status_code == 401
    assert "5 minutes" in answer.text
    assert server.orders.asked == []


@pytest.mark.parametrize("late", [-300, 0, 300])
async def test_within_five_minutes_it_is_good(server: Server, late: int) -> None:
    server.now = NOW - timedelta(seconds=late)
    assert (await server.click()).status_code == 200


async def test_forged_requests_are_logged_but_do_not_fill_the_log(server: Server) -> None:
    body = server.body()
    with capture_logs() as logs:
        for _ in range(20):
            await server.client.post(PATH, content=body)
    assert 1 <= len([line for line in logs if line["event"] == "slack_click_not_believed"]) <= 3
    assert len(server.refused) == 20


@pytest.mark.parametrize("desk", [True, False])
async def test_without_a_signing_secret_it_answers_503_and_says_so_once(desk: bool) -> None:
    async with serving(secret=None, desk=desk) as server:
        with capture_logs() as logs:
            answers = [await server.click() for _ in range(3)]
        assert {answer.status_code for answer in answers} == {503}
        assert "signing_secret" in answers[0].text
        assert [line["event"] for line in logs].count("slack_without_signing_secret") == 1
        assert server.orders.asked == []


async def test_a_body_without_end_is_turned_away(server: Server) -> None:
    answer = await server.send(b"payload=" + b"x" * (1024 * 1024 + 1))
    assert answer.status_code == 413


@given(st.text(max_size=200), st.text("abc0=é", max_size=20), st.text("0159é", max_size=14))
def test_the_check_agrees_with_slacks_own(text: str, signature: str, stamp: str) -> None:
    now, body = 1_700_000_000, text.encode()
    assert signature_fault(SECRET, stamp, signature, body, datetime.fromtimestamp(now, UTC))
    verifier = SignatureVerifier(SECRET)
    at = datetime.fromtimestamp(now, UTC)
    good = verifier.generate_signature(timestamp=str(now), body=body)
    assert signature_fault(SECRET, str(now), good, body, at) is None
    assert signature_fault(SECRET, str(now), good, body + b"x", at) is not None


# --- in time ------------------------------------------------------------------------------------


async def test_it_answers_in_time_and_tells_the_end_later(server: Server) -> None:
    server.orders.hold = asyncio.Event()
    answer = await asyncio.wait_for(server.click(), 3)
    assert (answer.status_code, server.orders.asked) == (200, [])
    server.orders.hold.set()
    assert "goes ahead" in await server.said()
    assert len(server.orders.asked) == 1


async def test_in_time_but_without_an_address_it_says_that_it_goes_on(server: Server) -> None:
    server.orders.hold = asyncio.Event()
    answer = await server.send(rewritten(server.body(), response_url=""))
    assert "longer than usual" in answer.json()["text"]
    server.orders.hold.set()


@pytest.mark.parametrize("failure", [StoreUnavailable("down"), RuntimeError("a fault of ours")])
async def test_a_failing_store_is_said_and_never_taken_for_a_yes(
    server: Server, failure: Exception
) -> None:
    server.orders.failure = failure
    answer = await server.click()
    assert answer.status_code == 200
    said = await server.said()
    assert "not known" in said
    assert str(failure) not in said


async def test_a_reply_that_slack_does_not_take_changes_nothing(server: Server) -> None:
    with capture_logs() as logs:
        url = f"{server.slack.origin}/actions/T0LOCAL/gone/local-secret"
        answer = await server.send(rewritten(server.body(), response_url=url))
        async with asyncio.timeout(5):
            while not any(line["event"] == "slack_reply_failed" for line in logs):  # noqa: ASYNC110 - a short poll
                await asyncio.sleep(0.02)
    assert (answer.status_code, len(server.orders.asked)) == (200, 1)
    assert "local-secret" not in str(logs)


# --- where replies go ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("https://hooks.slack.com/actions/T1/2/3", True),
        ("https://hooks.slack.com:443/actions/T1/2/3", True),
        ("https://slack.com/api/x", True),
        ("http://hooks.slack.com/actions/T1/2/3", False),
        ("https://hooks.slack.com:8443/actions", False),
        ("https://hooks.slack.com.evil.example.com/", False),
        ("https://hooks.slack.com@evil.example.com/", False),
        ("https://ann:x@hooks.slack.com/", False),
        ("https://evil.example.com/#hooks.slack.com", False),
        ("https://evil.example.com\\@hooks.slack.com/", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("file:///etc/passwd", False),
        ("//hooks.slack.com/", False),
        ("https://[::1", False),
        ("https://hooks.slack.com:x/", False),
        ("/actions", False),
        ("", False),
    ],
)
def test_replies_go_to_slack_and_nowhere_else(url: str, ours: bool) -> None:
    assert SlackReplies().reaches(url) is ours


def test_replies_go_to_the_configured_slack_as_well() -> None:
    gov = SlackReplies("https://slack-gov.com/api")
    assert gov.reaches("https://hooks.slack-gov.com/actions/1")
    local = SlackReplies("http://127.0.0.1:9/api/")
    assert local.reaches("http://127.0.0.1:9/actions/1")
    assert not local.reaches("http://127.0.0.1:10/actions/1")


@given(st.text(max_size=80) | st.text(":/@\\?#.[]sklacohtps%0 ", max_size=60))
def test_any_address_is_judged_without_an_error(url: str) -> None:
    SlackReplies().reaches(url)


async def test_no_redirection_is_followed() -> None:
    followed = []

    async def elsewhere(request: web.Request) -> web.Response:
        if request.path == "/begin":
            raise web.HTTPTemporaryRedirect("/end")
        followed.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_post("/{path}", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await SlackReplies(f"{origin}/api").tell(f"{origin}/begin", "text")
    finally:
        await runner.cleanup()
    assert followed == []


# --- what Slack sends ---------------------------------------------------------------------------


def payload(**changes: Any) -> bytes:
    action = {"action_id": "remediator_approve", "value": PLAN.written}
    whole = {"type": "block_actions", "user": {"id": ANN}, "actions": [action]} | changes
    return urlencode({"payload": json.dumps(whole)}).encode()


def test_a_press_is_read() -> None:
    assert read_click(payload(response_url="https://hooks.slack.com/x", more={"a": 1})) == Click(
        user=ANN, button=Button.APPROVE, plan=PLAN, response_url="https://hooks.slack.com/x"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"payload=",
        b"payload={}",
        b"payload=[]",
        b"payload=null",
        b"payload=%ff%fe",
        b"\xff\xfe",
        b"other=1",
        b"&" * 2_000,
        payload() + b"&" + payload(),
        payload(type="view_submission"),
        payload(user={}),
        payload(user={"id": "U1\n"}),
        payload(user={"id": 7}),
        payload(user={"id": "<!channel>"}),
        payload(actions=[]),
        payload(actions=[{"action_id": "remediator_approve", "value": PLAN.written}] * 2),
        payload(actions=[{"action_id": "another_app", "value": PLAN.written}]),
        payload(actions=[{"action_id": "remediator_approve", "value": ""}]),
        payload(actions=[{"action_id": "remediator_approve", "value": f"{ID} {HASH}\n"}]),
        payload(actions=[{"action_id": "remediator_approve", "value": f"{ID} nonsense"}]),
        payload(actions=[{"action_id": "remediator_approve", "value": {"a": 1}}]),
        payload(response_url="x" * 2_001),
        payload(response_url=None),
    ],
)
async def test_what_is_no_press_of_ours_is_said_and_nothing_is_done(
    server: Server, body: bytes
) -> None:
    with pytest.raises(RejectedDelivery):
        read_click(body)
    answer = await server.send(body)
    assert answer.status_code == 200
    assert "Not done" in answer.json()["text"]
    assert (server.orders.asked, server.orders.taken) == ([], set())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=10,
)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_click_or_rejected(body: bytes) -> None:
    with pytest.raises(RejectedDelivery):
        read_click(body)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "type": JSON | st.just("block_actions"),
            "user": JSON | st.fixed_dictionaries({"id": JSON | st.just(ANN)}),
            "actions": JSON
            | st.lists(
                st.fixed_dictionaries(
                    {"action_id": JSON | st.sampled_from(list(Button)), "value": JSON}
                )
            ),
            "response_url": JSON,
        },
    )
)
def test_any_payload_is_a_click_or_rejected(changes: dict[str, Any]) -> None:
    try:
        click = read_click(payload(**changes))
    except RejectedDelivery:
        return
    assert click.user == ANN or click.user[0] in "UW"
    assert PlanReference.read(click.plan.written) == click.plan


@given(st.text(max_size=60))
def test_any_text_is_a_plan_or_a_value_error(text: str) -> None:
    try:
        plan = PlanReference.read(text)
    except ValueError:
        return
    assert plan.written == text


# --- the buttons --------------------------------------------------------------------------------


def test_a_plan_that_waits_has_four_buttons_that_name_it() -> None:
    assert list(buttons()) == ["Approve", "Reject", "Pause service", "I take over"]
    assert {one["value"] for one in buttons().values()} == {PLAN.written}
    assert len({one["action_id"] for one in buttons().values()}) == 4


@pytest.mark.parametrize(
    "state", [s for s in MitigationState if s is not MitigationState.AWAITING_APPROVAL]
)
def test_once_it_is_decided_the_buttons_are_gone(state: MitigationState) -> None:
    decided = open_in(Phase.APPROVAL, mitigations=[mitigation(state, expires_at=START)])
    report = summarise(decided)
    drawn = [draw_request(report, one, "<!here>", buttons=True) for one in report.requests]
    for message in (draw(report), *drawn):
        assert {block.to_dict()["type"] for block in message.blocks} <= {"header", "section"}
        assert "<" not in str([block.to_dict() for block in message.blocks])
