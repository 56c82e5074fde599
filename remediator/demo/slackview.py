"""Draws a Slack message in the terminal, about as Slack would show it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

MARKS = re.compile(
    r"```(?P<pre>.+?)```|`(?P<code>[^`\n]+)`"
    r"|(?<![\w*])\*(?P<bold>[^*\n]+)\*(?![\w*])"
    r"|(?<!\w)_(?P<italic>[^_\n]+)_(?!\w)"
    r"|(?<![\w~])~(?P<strike>[^~\n]+)~(?![\w~])"
    r"|<(?P<link>[^>|\n]+)(?:\|(?P<label>[^>\n]+))?>"
    r"|:(?P<emoji>[a-z0-9_+-]+):",
    re.DOTALL,
)
STYLES = {"pre": "cyan", "code": "cyan", "bold": "bold", "italic": "italic", "strike": "strike"}
EMOJI = {
    "white_check_mark": "✔",
    "heavy_check_mark": "✔",
    "warning": "▲",
    "rotating_light": "▲",
    "x": "✘",
    "red_circle": "●",
    "large_green_circle": "●",
    "large_yellow_circle": "●",
    "hourglass_flowing_sand": "…",
    "mag": "?",
}
"""The few that have a plain sign; the others keep their names, as in a Slack export."""


def draw_message(channel: str, blocks: Iterable[Mapping[str, Any]]) -> Panel:
    """Draw one message of the app in ``channel`` from its blocks."""
    name = Text.assemble(("remediator", "bold"), ("  APP", "dim"))
    return Panel(Group(name, *_blocks(blocks)), title=Text(channel), title_align="left")


def mrkdwn(source: str) -> Text:
    """Turn Slack's markup into styled text."""
    text, end = Text(), 0
    for match in MARKS.finditer(source):
        text.append(_readable(source[end : match.start()]))
        kind = match.lastgroup or ""
        if match["link"]:
            text.append(_readable(match["label"] or match["link"]), "underline")
        elif kind == "emoji":
            text.append(EMOJI.get(match["emoji"], match[0]))
        else:
            text.append(_readable(match[kind].strip("\n")), STYLES[kind])
        end = match.end()
    return text.append(_readable(source[end:]))


def _readable(source: str) -> str:
    return html.unescape(source)


def _blocks(blocks: Iterable[Mapping[str, Any]]) -> Iterator[RenderableType]:
    for block in blocks:
        match block.get("type"):
            case "header":
                yield Text(str(block["text"]["text"]), "bold")
            case "section":
                yield from _section(block)
            case "context":
                yield Text(" ").join(_text(e) for e in block["elements"] if "text" in e)
            case "divider":
                yield Rule(style="dim")
            case "actions":
                buttons = (f"[ {element['text']['text']} ]" for element in block["elements"])
                yield Text("  ".join(buttons), "bold")
            case kind:
                yield Text(f"({kind})", "dim")


def _section(block: Mapping[str, Any]) -> Iterator[RenderableType]:
    if "text" in block:
        yield _text(block["text"])
    if block.get("fields"):
        fields = [_text(field) for field in block["fields"]]
        yield Padding(Columns(fields, equal=True, expand=True), (0, 0))


def _text(element: Mapping[str, Any]) -> Text:
    content = str(element.get("text", ""))
    if element.get("type") != "mrkdwn":
        return Text(content)
    return mrkdwn(content)
