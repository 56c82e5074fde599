"""Where in Slack an incident is told: by system, by service and by severity."""

from __future__ import annotations

from pathlib import Path

import pytest

from remediator.config.settings import Settings, load_settings
from remediator.config.slack import Places
from remediator.model.errors import ConfigError
from tests.incident_views import view

PLACES = """\
slack:
  channel: top
  channels: {sev1: top-1, sev4: top-4}
  mention: "<!here>"
  token_file: token
systems:
  shop:
    slack: {channel: shop, channels: {sev2: shop-2}}
    services:
      orders: {match: {app: orders}, slack: {channel: orders, channels: {sev1: orders-1}}}
      carts: {match: {app: carts}, slack: {channels: {sev4: carts-4}}}
      stock: {match: {app: stock}}
  bank:
    slack: {channels: {sev1: bank-1}}
    services:
      tills: {match: {app: tills}, slack: {mention: "<@U024BE7LH>"}}
"""


def loaded(folder: Path, text: str) -> Settings:
    (folder / "remediator.yaml").write_text(text)
    return load_settings(None, {}, folder)


@pytest.mark.parametrize(
    ("service", "channels"),
    [
        ("shop/orders", ["orders-1", "orders", "orders", "orders"]),
        ("shop/carts", ["shop", "shop-2", "shop", "carts-4"]),
        ("shop/stock", ["shop", "shop-2", "shop", "shop"]),
        ("shop/unknown", ["shop", "shop-2", "shop", "shop"]),
        ("bank/tills", ["bank-1", "top", "top", "top-4"]),
        ("unknown/tills", ["top-1", "top", "top", "top-4"]),
    ],
)
def test_the_narrower_level_names_the_channel_and_on_one_level_the_severity(
    tmp_path: Path, service: str, channels: list[str]
) -> None:
    settings = loaded(tmp_path, PLACES)
    assert settings.slack is not None
    places = Places(settings.slack, settings.systems)
    system, _, name = service.partition("/")
    told = [places.of(view(system=system, service=name, severity=n)) for n in (1, 2, 3, 4)]
    assert [place.channel for place in told] == channels
    mention = "<@U024BE7LH>" if service == "bank/tills" else "<!here>"
    assert {place.mention for place in told} == {mention}


def test_an_incident_that_no_service_matches_is_told_by_its_severity(tmp_path: Path) -> None:
    settings = loaded(tmp_path, PLACES)
    assert settings.slack is not None
    unmatched = view(system=None, service=None, severity=1)
    assert Places(settings.slack, settings.systems).of(unmatched).channel == "top-1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "slack: {webhook_url_env: W, channels: {sev1: c}}",
            "slack: channels by severity: needs slack.token_file or token_env",
        ),
        (
            "slack: {webhook_url_env: W}\nsystems: {shop: {slack: {channels: {sev2: c}}}}",
            "systems.shop.slack.channels.sev2: needs slack.token_file or token_env",
        ),
        (
            "systems: {shop: {services: {orders: {slack: {channels: {sev4: c}}}}}}",
            "systems.shop.services.orders.slack.channels.sev4: needs slack.token_file",
        ),
        ("slack: {channel: c, token_env: T, channels: {sev5: c}}", "sev5"),
    ],
)
def test_a_channel_that_nothing_could_be_posted_to_is_an_error(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert said in str(caught.value)
