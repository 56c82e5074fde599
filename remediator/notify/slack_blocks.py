"""Draws a report as Slack blocks, within Slack's limits, with everything foreign made inert.

Foreign text stands in ``plain_text`` objects only, where Slack reads no mrkdwn, and is escaped on
top, so that ``<!channel>``, links and mentions stay letters. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC

from slack_sdk.models.blocks import (
    ActionsBlock,
    Block,
    ButtonElement,
    ConfirmObject,
    HeaderBlock,
    MarkdownTextObject,
    PlainTextObject,
    SectionBlock,
)

from remediator.model.views import (
    ApprovalRequest,
    Button,
    FindingView,
    IncidentView,
    PlanReference,
    Report,
    TimelineEvent,
)

HEADER_LIMIT = 150
SECTION_LIMIT = 3_000
CONFIRM_LIMIT = 300
BLOCKS_LIMIT = 50
TEXT_LIMIT = 4_000
"""What Slack advises; it cuts at 40,000."""
LINE_LIMIT = 1_000
"""Bytes of one line, so that a single finding does not crowd out the others."""
_ROOMS = {
    "happened": 1_400,
    "found": 2_200,
    "done": 2_200,
    "helped": 1_000,
    "next": 1_200,
    "request": 160,
}
"""Bytes for each part. Slack refuses blocks that sum up to more than some undocumented 11,000
characters (msg_blocks_too_long), so the parts share 8,000."""
_BRIEF = 700
"""Bytes for the lines of a short message; all of them take about 400 characters."""
_LABELS = (
    (Button.APPROVE, "Approve", "primary"),
    (Button.REJECT, "Reject", "danger"),
    (Button.PAUSE, "Pause service", None),
    (Button.TAKE_OVER, "I take over", None),
)
_DETAIL_ROOM = 4_000
_MARK_ROOM = 50


@dataclass(frozen=True)
class Message:
    """One message as Slack takes it: blocks, and the text of notifications and old clients."""

    text: str
    blocks: tuple[Block, ...]


def escape(text: str) -> str:
    """Turn Slack's three control characters into entities."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fit(text: str, limit: int) -> str:
    """Escape ``text`` and cut it to ``limit`` bytes, saying how many characters were left out.

    Bytes, because it is not documented whether Slack counts characters or UTF-16 units; and an
    entity is never cut in two.
    """
    if _size(escape(text)) <= limit:
        return escape(text)
    kept, size = 0, 0
    for character in text:
        size += _size(escape(character))
        if size > limit - _MARK_ROOM:
            break
        kept += 1
    return f"{escape(text[:kept])}… ({len(text) - kept} characters left out)"


def draw(report: Report, *, mention: str = "") -> Message:
    """Draw the message that is edited while the incident lives; ``mention`` calls people.

    It is short: ``draw_report`` has the rest.
    """
    lines = _packed([fit(line, _BRIEF) for line in report.brief if line.strip()], _BRIEF)
    links = " · ".join(_link(name, url) for name, url in report.links.items())
    blocks: list[Block] = [
        HeaderBlock(text=_plain(fit(report.headline, HEADER_LIMIT))),
        *([_ours(mention)] if mention else ()),
        *(SectionBlock(text=_plain(text)) for text in lines),
        *([_ours(links)] if links else ()),
    ]
    text = fit(f"{report.headline}\n{report.next_step}", TEXT_LIMIT)
    return Message(text=text, blocks=tuple(blocks))


def draw_report(report: Report) -> Message:
    """Draw all that is said of the incident, for the message's thread."""
    return Message(
        text=fit(f"Report on incident {report.incident.id}", TEXT_LIMIT),
        blocks=(
            *_part("What happened", report.happened, _ROOMS["happened"]),
            *_part("What was found", report.found, _ROOMS["found"]),
            *_part("What was done", report.done, _ROOMS["done"]),
            *_part("Did it help", (report.helped,), _ROOMS["helped"]),
            *_part("What to do next", (report.next_step,), _ROOMS["next"]),
        ),
    )


def _link(name: str, url: str) -> str:
    """Link a web address; what would end the link is written as a URL has it."""
    inert = url.replace("|", "%7C").replace("<", "%3C").replace(">", "%3E")
    return f"<{escape(inert)}|{escape(name.capitalize())}>"


def draw_detail(report: Report) -> Message:
    """Draw every finding and the timeline, for the message's thread."""
    findings = [_finding(finding) for finding in report.incident.findings]
    events = [_event(event) for event in report.incident.timeline]
    return Message(
        text=fit(f"Detail of incident {report.incident.id}", TEXT_LIMIT),
        blocks=(
            *_part("Findings", findings, _DETAIL_ROOM),
            *_part("Timeline (UTC)", events, _DETAIL_ROOM),
        ),
    )


def draw_reply(text: str) -> Message:
    """Draw a line for the one person who clicked."""
    fitted = fit(text or "-", LINE_LIMIT)
    return Message(text=fitted, blocks=(SectionBlock(text=_plain(fitted)),))


def draw_request(
    report: Report, request: ApprovalRequest, mention: str, *, buttons: bool
) -> Message:
    """Draw a request for an approval, or what became of it: nothing to press, nobody mentioned."""
    why = fit(f"Why: {request.why}", _ROOMS["request"])
    blocks: list[Block] = [HeaderBlock(text=_plain(fit(request.headline, HEADER_LIMIT)))]
    if request.waits:
        blocks.append(_ours(" ".join(part for part in (mention, _deadline(request)) if part)))
    lines = [f"Change: {request.action}", f"Effect: {request.consequence}"]
    shown = [fit(line, _ROOMS["request"]) for line in lines[: 2 if request.consequence else 1]]
    blocks.append(SectionBlock(text=_plain("\n".join((*shown, why)))))
    text = fit(f"{request.headline}\n{request.action}", TEXT_LIMIT)
    if request.waits:
        commands = f"remediator approve {report.incident.id}"
        blocks.append(SectionBlock(text=_plain(fit(f"Or run: {commands}", SECTION_LIMIT))))
        blocks += _buttons(report.incident, request) if buttons else ()
    return Message(text=text, blocks=tuple(blocks))


def _deadline(request: ApprovalRequest) -> str:
    """Say who has to decide by when, in the reader's own time zone."""
    if request.expires_at is None:
        return f"{escape(request.who)}: approve or reject."
    seconds = int(request.expires_at.timestamp())
    until = f"<!date^{seconds}^{{time}}|{escape(request.deadline)}>"
    return f"{escape(request.who)}: approve or reject before {until}."


def _buttons(view: IncidentView, request: ApprovalRequest) -> list[Block]:
    value = PlanReference(incident_id=view.id, plan_hash=request.plan_hash).written
    elements = [
        ButtonElement(
            text=_plain(text),
            action_id=button,
            value=value,
            style=style,
            confirm=_confirm(request) if button is Button.APPROVE else None,
        )
        for button, text, style in _LABELS
    ]
    return [ActionsBlock(elements=elements, block_id="remediator_plan")]


def _confirm(request: ApprovalRequest) -> ConfirmObject:
    """Ask once more, with what the change does."""
    asked = f"{request.action}. {request.consequence}".strip()
    return ConfirmObject(
        title=_plain("Approve this change?"),
        text=_plain(fit(asked, CONFIRM_LIMIT)),
        confirm=_plain("Approve"),
        deny=_plain("Cancel"),
    )


def _ours(text: str) -> SectionBlock:
    """Words of our own with a mention or a date in them; everything foreign in it is escaped."""
    return SectionBlock(text=MarkdownTextObject(text=text, verbatim=True))


def _part(title: str, lines: Iterable[str], room: int) -> list[Block]:
    """One title of ours, then the lines, packed into as few sections as they fit in."""
    bold = MarkdownTextObject(text=f"*{title}*", verbatim=True)
    room -= _MARK_ROOM
    texts = _packed([fit(line, min(LINE_LIMIT, room - 1)) for line in lines if line.strip()], room)
    return [SectionBlock(text=bold), *(SectionBlock(text=_plain(text)) for text in texts)]


def _packed(lines: list[str], room: int) -> list[str]:
    """Join escaped lines to texts of a section's size; what is over ``room`` is left out, with its count."""
    texts = [""]
    for taken, line in enumerate(lines):
        room -= _size(line) + 1
        if room < 0:
            texts.append(f"… ({len(lines) - taken} lines left out)")
            break
        joined = f"{texts[-1]}\n{line}" if texts[-1] else line
        if _size(joined) <= SECTION_LIMIT:
            texts[-1] = joined
        else:
            texts.append(line)
    return [text for text in texts if text] or ["-"]


def _finding(finding: FindingView) -> str:
    return f"{finding.round}. {finding.name}: {finding.status}. {finding.summary}"


def _event(event: TimelineEvent) -> str:
    reason = f": {event.reason}" if event.reason else ""
    mark = " (not sealed)" if event.unsealed else ""
    return f"{event.at.astimezone(UTC):%H:%M:%S} {event.step}, {event.event}{mark}{reason}"


def _plain(escaped: str) -> PlainTextObject:
    return PlainTextObject(text=escaped, emoji=False)


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))
