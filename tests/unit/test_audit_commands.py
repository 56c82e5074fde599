"""The audit of a real service by the command line, and an export of it without the service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from remediator.cli import main
from remediator.config.settings import load_settings
from remediator.model.errors import ConfigError
from remediator.service import running
from remediator.service.audit_keys import look_at_key

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Run]:
    """Commands against a service on an empty SQLite store, which pauses and goes on once."""
    state = tmp_path / "state"
    settings = load_settings(
        None, {"REMEDIATOR_STATE_DIR": str(state), "REMEDIATOR_LISTEN": "127.0.0.1:0"}, tmp_path
    )
    monkeypatch.chdir(tmp_path)

    async def command(*arguments: str) -> tuple[int, str, str]:
        def called() -> int:
            try:
                main(arguments)
            except SystemExit as end:
                return int(end.code or 0)
            return 0

        code = await asyncio.to_thread(called)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    async with running(settings, {}) as service:
        monkeypatch.setenv("REMEDIATOR_URL", service.url)
        monkeypatch.setenv("REMEDIATOR_STATE_DIR", str(state))
        token = (state / "token").read_text().strip()
        async with httpx.AsyncClient(base_url=service.url, verify=False) as client:
            alert = {"status": "firing", "labels": {"alertname": "X"}, "fingerprint": "f"}
            alert["startsAt"] = "2026-01-01T00:00:00Z"
            body = {"version": "4", "status": "firing", "alerts": [alert]}
            taken = await client.post("/", json=body, headers={"Authorization": f"Bearer {token}"})
            assert taken.status_code == 202
        for arguments in (("pause", "--reason", "a look"), ("resume",)):
            assert (await command(*arguments))[0] == 0
        yield command


@pytest.fixture
def key(run: Run) -> str:
    return str(Path(os.environ["REMEDIATOR_STATE_DIR"]) / "audit-key")


@pytest.fixture
async def export(run: Run, tmp_path: Path) -> Path:
    code, out, _ = await run("audit", "export")
    assert code == 0
    (tmp_path / "export").write_text(out)
    return tmp_path / "export"


def store() -> str:
    return str(Path(os.environ["REMEDIATOR_STATE_DIR"]) / "remediator.db")


def rewrite(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


def lines_of(text: str, kept: slice) -> str:
    return "".join(text.splitlines(keepends=True)[kept])


def copy(file: Path, to: Path, kept: slice) -> None:
    to.write_text(lines_of(file.read_text(), kept))


def mode_of(file: str) -> int:
    return Path(file).stat().st_mode & 0o777


async def test_the_service_verifies_what_it_wrote(run: Run) -> None:
    code, out, err = await run("audit", "verify")
    assert (code, err) == (0, "")
    assert out.endswith("Nothing is wrong.\n")
    code, out, _ = await run("audit", "verify", "--json")
    assert (code, json.loads(out)["ok"], json.loads(out)["unsealed"]) == (0, True, 0)


async def test_a_line_without_a_seal_is_marked_in_the_timeline(run: Run) -> None:
    (incident,) = json.loads((await run("incidents", "--json"))[1])["items"]
    assert "not sealed" not in (await run("incidents", incident["id"]))[1]
    with contextlib.closing(sqlite3.connect(store())) as connection, connection:
        connection.execute("UPDATE journal SET number = NULL, mac = NULL WHERE step = 'triage'")
    assert "(not sealed)" in (await run("incidents", incident["id"]))[1]


async def test_the_generated_key_is_for_its_owner_alone(run: Run, key: str) -> None:
    assert mode_of(key) == 0o600


async def test_an_export_verifies_without_the_service(run: Run, export: Path, key: str) -> None:
    code, out, _ = await run("audit", "verify", "--file", str(export), "--key-file", key)
    assert code == 0
    assert out.endswith("Nothing is wrong.\n")


async def test_a_changed_word_in_an_export_is_found_and_named(
    run: Run, export: Path, key: str
) -> None:
    rewrite(export, lambda text: text.replace("a look", "nothing"))
    code, out, err = await run("audit", "verify", "--file", str(export), "--key-file", key)
    assert code == 1
    assert "changed: operators" in out
    assert "does not hold" in err


async def test_an_export_whose_end_is_missing_is_not_verified(
    run: Run, export: Path, key: str
) -> None:
    rewrite(export, lambda text: "".join(text.splitlines(keepends=True)[:-1]))
    code, _, err = await run("audit", "verify", "--file", str(export), "--key-file", key)
    assert code == 1
    assert "is not complete" in err


async def test_an_export_with_a_wrong_key_is_said_to_be_of_another_key(
    run: Run, export: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("another key that fits nothing")
    arguments = ("--file", str(export), "--key-file", str(tmp_path / "other"))
    code, out, _ = await run("audit", "verify", *arguments)
    assert code == 1
    assert out.count("no entry matches the given key") == 1
    assert "changed" not in out


async def test_an_earlier_export_that_does_not_go_on_in_a_later_one_is_found(
    run: Run, export: Path, key: str, tmp_path: Path
) -> None:
    await run("pause", "--reason", "once more")
    (tmp_path / "later").write_text((await run("audit", "export"))[1])
    given = ("--key-file", key, "--against")
    later = str(tmp_path / "later")
    assert (await run("audit", "verify", "--file", later, *given, str(export)))[0] == 0
    code, out, _ = await run("audit", "verify", "--file", str(export), *given, later)
    assert code == 1
    assert "cut: operators" in out


async def test_one_incident_is_exported_and_verified_as_a_part(
    run: Run, key: str, tmp_path: Path
) -> None:
    (incident,) = json.loads((await run("incidents", "--json"))[1])["items"]
    _, out, _ = await run("audit", "export", "--incident", incident["id"])
    (tmp_path / "part").write_text(out)
    arguments = ("--file", str(tmp_path / "part"), "--key-file", key)
    code, out, _ = await run("audit", "verify", *arguments)
    assert code == 0
    assert "This is a part of the journal" in out


async def test_a_generated_key_that_is_gone_is_not_replaced(tmp_path: Path) -> None:
    environ = {"REMEDIATOR_STATE_DIR": str(tmp_path / "s"), "REMEDIATOR_LISTEN": "127.0.0.1:0"}
    settings = load_settings(None, environ, tmp_path)
    assert look_at_key(settings, {})[0] == "ok"
    async with running(settings, {}):
        pass
    key = tmp_path / "s" / "audit-key"
    key.rename(tmp_path / "kept")
    with pytest.raises(ConfigError, match="is gone, and the store is sealed with it"):
        async with running(settings, {}):
            pass
    assert not key.exists()
    level, _, said = look_at_key(settings, {})
    assert level == "error"
    assert "restore it, or set audit.key_file" in said
    (tmp_path / "kept").rename(key)
    async with running(settings, {}):
        pass
    assert look_at_key(settings, {})[0] == "ok"


def dropped(text: str, *places: int) -> str:
    """Return an export without some lines, whose end says what it still has."""
    lines = text.splitlines()
    kept = [json.loads(line) for place, line in enumerate(lines) if place not in places]
    kept[-1]["entries"] = sum(line["kind"] == "entry" for line in kept)
    return "".join(json.dumps(line) + "\n" for line in kept)


async def part_of(run: Run, *asked: str) -> str:
    if asked == ("--incident",):
        (incident,) = json.loads((await run("incidents", "--json"))[1])["items"]
        asked = ("--incident", incident["id"])
    code, out, _ = await run("audit", "export", *asked)
    assert code == 0
    return out


async def test_a_part_that_lost_its_beginning_or_its_head_is_found(
    run: Run, key: str, tmp_path: Path
) -> None:
    whole = await part_of(run, "--incident")
    given = ("--file", str(tmp_path / "part"), "--key-file", key)
    head = len(whole.splitlines()) - 2
    for places, said in (((1,), "missing: "), ((head,), "cut: "), ((1, head), "missing: ")):
        (tmp_path / "part").write_text(dropped(whole, *places))
        code, out, _ = await run("audit", "verify", *given)
        assert code == 1
        assert said in out


async def test_a_part_since_some_time_says_what_it_cannot_prove(
    run: Run, key: str, tmp_path: Path
) -> None:
    since = json.loads((await part_of(run)).splitlines()[-6])["at"]
    part = await part_of(run, "--since", since)
    given = ("--file", str(tmp_path / "part"), "--key-file", key)
    (tmp_path / "part").write_text(part)
    code, out, _ = await run("audit", "verify", *given)
    assert code == 0
    assert "1 first entry cannot be verified" in out
    heads = [n for n, line in enumerate(part.splitlines()) if '"chain":"operators","count"' in line]
    (tmp_path / "part").write_text(dropped(part, *heads))
    code, out, _ = await run("audit", "verify", *given)
    assert code == 1
    assert "cut: operators" in out


async def test_an_export_that_has_not_as_many_entries_as_its_end_says_is_refused(
    run: Run, export: Path, key: str
) -> None:
    rewrite(export, lambda text: lines_of(text, slice(0, 1)) + lines_of(text, slice(2, None)))
    code, _, err = await run("audit", "verify", "--file", str(export), "--key-file", key)
    assert code == 1
    assert "its end says" in err


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (slice(0, 0), "not complete"),
        (slice(0, -1), "not complete"),
        (slice(-1, None), "nothing to compare with"),
    ],
)
async def test_an_earlier_export_that_says_nothing_is_refused(
    run: Run, export: Path, key: str, tmp_path: Path, kept: slice, said: str
) -> None:
    copy(export, tmp_path / "earlier", kept)
    given = ("--file", str(export), "--key-file", key, "--against", str(tmp_path / "earlier"))
    code, _, err = await run("audit", "verify", *given)
    assert code == 1
    assert said in err


async def test_the_last_lines_of_an_earlier_export_are_enough(
    run: Run, export: Path, key: str, tmp_path: Path
) -> None:
    copy(export, tmp_path / "earlier", slice(-3, None))
    given = ("--file", str(export), "--key-file", key, "--against", str(tmp_path / "earlier"))
    code, out, _ = await run("audit", "verify", *given)
    assert code == 0
    assert "2 heads of the earlier export compared" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "--key-file", "k"], "belong to --file"),
        (["verify", "--file", "export"], "verified with --key-file"),
        (["verify", "--file", "missing", "--key-file", "short"], "at least 16 bytes"),
        (["export", "--since", "yesterday"], "is no time; write a duration such as 30m"),
    ],
)
async def test_a_command_that_cannot_be_meant_is_refused(
    run: Run, export: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "short").write_text("short")
    code, _, err = await run("audit", *arguments)
    assert code in (1, 2)
    assert said in err
