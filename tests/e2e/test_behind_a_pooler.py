"""The service on a PostgreSQL behind PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from tests.pgbouncer_fixtures import pgbouncer
from tests.postgres_fixtures import eventually
from tests.replica_fixtures import Replica
from tests.service_fixtures import pool_alert


async def test_replicas_behind_a_pooler_do_their_work_and_check_says_what_it_means(
    postgres_database: str, tmp_path: Path
) -> None:
    async with pgbouncer(postgres_database, "transaction") as through:
        (tmp_path / "store.dsn").write_text(through)
        config = {"listen": "127.0.0.1:0", "store": {"dsn_file": str(tmp_path / "store.dsn")}}
        one, two = (Replica(tmp_path / name, config) for name in ("one", "two"))
        try:
            for replica in (one, two):
                replica.folder.mkdir()
                await replica.start()
            answers = await asyncio.gather(
                *(one.post(pool_alert(service="unheard-of", pod=f"p{n}")) for n in range(20))
            )
            assert {answer.status_code for answer in answers} == {202}

            async def triaged() -> bool:
                (incident,) = await two.incidents() or [{}]
                return len(incident.get("alerts", ())) == len(answers)

            await eventually(triaged, "the other one sees all of them", within=30)
            code, output = await two.command("check", "--config", "remediator.yaml")
            assert code == 0, output
            assert "behind a pooler in transaction mode" in output
            assert [await replica.end(signal.SIGTERM) for replica in (one, two)] == [0, 0]
        finally:
            await one.kill()
            await two.kill()
