"""The parts of the configuration about where state is kept, and how it is sealed."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import ByteSize, Field

from remediator.config.sections import File, Period, SecretRef, Section, Size, Variable


class Store(Section):
    """Where state is kept."""

    dsn_file: File | None = None
    """File with the PostgreSQL URL, `postgresql://user:password@host/database`."""
    dsn_env: Variable | None = None
    """Environment variable with the PostgreSQL URL. Neither: SQLite in `state_dir`."""
    lease: Annotated[Period, Field(ge=timedelta(seconds=1))] = timedelta(seconds=5)
    """Time after which a silent replica's incident is taken over by another; and the time in
    which a reserved change may begin."""
    retention: Annotated[Period, Field(ge=timedelta(days=1))] | Literal["never"] = timedelta(
        days=90
    )
    """Time after which closed incidents are deleted whole, and the deliveries that they came by;
    what limits still count stays in any case. `never`: nothing is ever deleted."""
    reserve: Size = ByteSize(16 * 1024 * 1024)
    """Room on the disk of `state_dir` that is kept back, with SQLite, and given up when the disk is
    full: for operators' orders and the end of what is under way. Webhooks get 503 then."""


class Redis(Section):
    """A Redis that the replicas share. It makes things faster and is never needed."""

    url_file: File | None = None
    """File with the URL, `redis://user:password@host:6379/0`; also `rediss://` and `unix://`."""
    url_env: Variable | None = None
    """Environment variable with the URL. Neither: no Redis."""
    duplicates: Annotated[bool, Field(strict=True)] = True
    """Whether the same body that comes again within seconds may be answered without storing it
    once more, where that changes nothing."""


class Audit(Section):
    """What the journal is sealed with, so that nobody changes it unseen."""

    key_file: File | None = None
    """File with the key, the same for all replicas: any text of 16 bytes or more."""
    key_env: Variable | None = None
    """Environment variable with the key. Neither: with SQLite one is generated in `state_dir`; with
    PostgreSQL nothing is sealed."""
    other_key_files: tuple[File, ...] = ()
    """Files with further keys that entries may be sealed with: earlier ones, or the next one."""

    @property
    def others(self) -> tuple[SecretRef, ...]:
        """References to the keys that only verify."""
        return tuple(SecretRef(file=file) for file in self.other_key_files)
