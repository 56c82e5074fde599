"""The audit over the API: the journal as it is sealed, and whether its seals hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import structlog
from aiohttp import web
from pydantic import AwareDatetime

from remediator.api.routing import JSON_LINES, Call, Nothing, Route, Text
from remediator.model.access import Permission
from remediator.model.audit import Verification
from remediator.model.base import Value
from remediator.model.errors import RemediatorError
from remediator.store.audit.chain import Begin, End, Entry, Head, Part, Record

_AT_ONCE = 64 * 1024
"""Bytes that are sent together."""
_TAKEN_WITHIN = 60.0
"""Seconds in which whoever reads has to take them."""

_log = structlog.get_logger(__name__)


class Audit(Protocol):
    """The journal as it is sealed. Both raise ``StoreUnavailable``."""

    async def verify(self) -> Verification:
        """Check every seal; ``Refused`` (409) where there is no key."""
        ...

    def export(self, part: Part) -> AsyncGenerator[Begin | Entry | Head | End, None]:
        """Yield the entries of ``part`` in their order, then how far each chain goes."""
        ...


class AuditQuery(Value):
    """Which part of the journal is asked for; without any, all of it."""

    incident: Text | None = None
    since: AwareDatetime | None = None


def audit_routes(audit: Audit) -> tuple[Route, ...]:
    """Return the routes of the audit."""

    async def export(call: Call) -> web.StreamResponse:
        part = Part.model_validate(dict(call.query))
        answer = web.StreamResponse(headers={"Content-Type": JSON_LINES})
        async with aclosing(audit.export(part)) as records:
            waiting = bytearray(_line(await anext(records)))  # what fails here is an error answer
            await answer.prepare(call.request)
            if call.request.method == "HEAD":
                return answer
            try:
                async for record in records:
                    waiting += _line(record)
                    if len(waiting) >= _AT_ONCE:
                        async with asyncio.timeout(_TAKEN_WITHIN):
                            await answer.write(bytes(waiting))
                        waiting.clear()
                await answer.write(bytes(waiting))
                await answer.write_eof()
            except (RemediatorError, ConnectionError, TimeoutError) as error:
                _log.warning("audit_export_broke_off", reason=str(error) or "it was not read")
                answer.force_close()
                if call.request.transport is not None:
                    call.request.transport.abort()  # so that it is not taken for complete
        return answer

    async def verify(_: Call) -> Verification:
        return await audit.verify()

    return (
        Route(
            "GET",
            "/api/v1/audit",
            Permission.OPERATE,
            export,
            "Write the journal out as it is sealed, one JSON document a line",
            query=AuditQuery,
            lines=Record,
            errors=(503,),
        ),
        Route(
            "GET",
            "/api/v1/audit/verify",
            Permission.OPERATE,
            verify,
            "Check every seal of the journal",
            query=Nothing,
            response=Verification,
            errors=(409, 503),
        ),
    )


def _line(record: Begin | Entry | Head | End) -> bytes:
    return record.model_dump_json(ensure_ascii=True).encode() + b"\n"
