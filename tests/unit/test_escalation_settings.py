"""Who is called, as the file says it: what is inherited, what is refused, what `check` says of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from remediator.config.settings import Settings, load_settings
from remediator.model.catalog import Catalogue
from remediator.model.errors import ConfigError
from remediator.service.channels import look_at_channels, open_channels

SECRET = "hunter2hunter2"
SYSTEMS = """
systems:
  shop:
    match: {system: shop}
    services:
      orders: {match: {service: orders}}
      cart: {match: {service: cart}}
"""
CHANNELS = """
channels:
  mail: {apprise_url_env: MAIL_URL}
slack: {channel: C, token_env: SLACK}
pagerduty: {routing_key_env: KEY}
"""


def load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "remediator.yaml"
    file.write_text(text)
    return load_settings(file, {"HOME": str(tmp_path)}, tmp_path)


def levels(catalogue: Catalogue, service: str) -> list[tuple[float, tuple[str, ...]]]:
    found = catalogue.service("shop", service)
    assert found is not None
    return [(level.after.total_seconds(), level.notify) for level in found.escalation.levels]


def test_nobody_is_called_where_nothing_is_configured(tmp_path: Path) -> None:
    assert levels(load(tmp_path, SYSTEMS).catalogue(), "orders") == []


def test_pagerduty_is_called_at_once_where_only_its_key_is_configured(tmp_path: Path) -> None:
    catalogue = load(tmp_path, SYSTEMS + CHANNELS).catalogue()
    assert levels(catalogue, "orders") == [(0, ("pagerduty",))]
    assert catalogue.escalation.levels[0].notify == ("pagerduty",)


def test_what_a_system_or_service_leaves_out_is_as_one_level_up(tmp_path: Path) -> None:
    text = """
escalation:
  levels: [{notify: [slack]}, {after: 10m, notify: [pagerduty, mail]}]
  acknowledged_for: 1h
systems:
  shop:
    match: {system: shop}
    escalation: {acknowledged_for: 5m}
    services:
      orders: {match: {service: orders}, pagerduty_resolve: true}
      cart: {match: {service: cart}, escalation: {levels: []}}
"""
    catalogue = load(tmp_path, CHANNELS + text).catalogue()
    assert levels(catalogue, "orders") == [(0, ("slack",)), (600, ("pagerduty", "mail"))]
    assert levels(catalogue, "cart") == []
    orders, cart = (catalogue.service("shop", name) for name in ("orders", "cart"))
    assert orders is not None
    assert cart is not None
    assert orders.escalation.acknowledged_for == timedelta(minutes=5)
    assert (orders.pagerduty_resolve, cart.pagerduty_resolve) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "escalation: {levels: [{notify: [slack]}]}",
            ":1: escalation.levels[0].notify[0]: slack is not configured; set slack",
        ),
        (
            "escalation: {levels: [{notify: [pagerduty]}]}",
            "pagerduty is not configured; set pagerduty.routing_key_file or routing_key_env",
        ),
        (
            CHANNELS + "escalation: {levels: [{notify: [mial]}]}",
            "there is no channel 'mial'; did you mean mail?",
        ),
        (
            CHANNELS + "escalation: {levels: [{notify: [mail]}, {notify: [slack]}]}",
            "escalation.levels[1].after: should be later than the level before it",
        ),
        ("escalation: {levels: [{notify: []}]}", "escalation.levels[0].notify"),
        ("escalation: {levels: [{after: 5, notify: [slack]}]}", "escalation.levels[0].after"),
        ("channels: {slack: {apprise_url_env: V}}", "channels.slack: this name is built in"),
        ("channels: {mail: {}}", "channels.mail: needs apprise_url_file or apprise_url_env"),
        (
            "systems: {shop: {escalation: {levels: [{notify: [mail]}]}}}",
            "systems.shop.escalation.levels[0].notify[0]: there is no channel 'mail'",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "remediator.yaml:" in str(caught.value)


# --- opening and checking -----------------------------------------------------------------------


def checked(settings: Settings, **environ: str) -> list[tuple[str, str, str]]:
    def lines() -> Iterator[tuple[str, str, str]]:
        yield from look_at_channels(settings, settings.catalogue(), environ)

    return list(lines())


def test_check_says_what_can_be_seen_without_sending_anything(tmp_path: Path) -> None:
    settings = load(tmp_path, SYSTEMS + CHANNELS)
    mail = f"mailtos://bob:{SECRET}@example.com"
    assert checked(settings, MAIL_URL=mail, KEY="a1" * 16, SLACK="xoxb-1") == [
        ("ok", "channel mail", "its URL can be read; nothing was sent"),
        ("ok", "pagerduty", "the routing key can be read; nothing was sent"),
    ]


def test_check_names_what_is_wrong_and_no_secret(tmp_path: Path) -> None:
    text = """
pagerduty: {routing_key_env: KEY, api_token_env: TOKEN}
channels: {mail: {apprise_url_env: MAIL_URL}, sms: {apprise_url_env: SMS_URL}}
escalation: {levels: []}
"""
    settings = load(tmp_path, text + SYSTEMS)
    lines = checked(settings, MAIL_URL=f"nonsense://{SECRET}", KEY=SECRET, TOKEN=SECRET)
    said = [f"{level} {subject}: {what}" for level, subject, what in lines]
    assert SECRET not in "\n".join(said)
    assert any("error channel mail: " in line and "apprise cannot read" in line for line in said)
    assert any("error channel sms: " in line and "SMS_URL is not set" in line for line in said)
    assert any("warning pagerduty: " in line and "does not look like" in line for line in said)
    assert any("warning pagerduty: without from_email" in line for line in said)
    assert "warning escalation: nobody is called for shop/orders, shop/cart" in said


async def test_the_service_opens_what_is_configured_and_refuses_what_it_cannot_use(
    tmp_path: Path,
) -> None:
    notes = "pagerduty: {routing_key_env: KEY, api_token_env: TOKEN, from_email: bot@example.com}\n"
    text = CHANNELS.replace("pagerduty: {routing_key_env: KEY}\n", notes)
    settings = load(tmp_path, text)
    environ = {"KEY": "k", "TOKEN": "t", "SLACK": "xoxb-1"}
    good = environ | {"MAIL_URL": "json://127.0.0.1:9"}
    async with open_channels(settings, good) as channels:
        assert sorted(channels) == ["mail", "pagerduty", "pagerduty/notes", "slack"]
    with pytest.raises(ConfigError, match=r"remediator\.yaml:3: channels\.mail: .*cannot read"):
        async with open_channels(settings, environ | {"MAIL_URL": f"nonsense://{SECRET}"}):
            pass
