"""Draws a Slack message in the terminal, about as Slack would show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

MARKS = re.compile(
    r"`(?P<code>[^`\n]+)`"
    r"|(?<![\w*])\*(?P<bold>[^*\n]+)\*(?![\w*])"
    r"|(?<!\w)_(?P<italic>[^_\n]+)_(?!\w)"
    r"|<(?P<link>[^>|\n]+)(?:\|(?P<label>[^>\n]+))?>"
)
STYLES = {"code": "cyan", "bold": "bold", "italic": "italic"}


def draw_message(channel: str, blocks: Iterable[Mapping[str, Any]]) -> Panel:
    """Draw one message of the app in ``channel`` from its blocks."""
    name = Text.assemble(("remediator", "bold"), ("  APP", "dim"))
    return Panel(Group(name, *_blocks(blocks)), title=Text(channel), title_align="left")


def mrkdwn(source: str) -> Text:
    """Turn Slack's markup into styled text."""
    text, end = Text(), 0
    for match in MARKS.finditer(source):
        text.append(_readable(source[end : match.start()]))
        if match["link"]:
            text.append(_readable(match["label"] or match["link"]), "underline")
        else:
            kind = str(match.lastgroup)
            text.append(_readable(match[kind]), STYLES[kind])
        end = match.end()
    return text.append(_readable(source[end:]))


def _readable(source: str) -> str:
    return source.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _blocks(blocks: Iterable[Mapping[str, Any]]) -> Iterator[RenderableType]:
    for block in blocks:
        text = block.get("text") or {}
        content = str(text.get("text", ""))
        if block.get("type") == "actions":
            labels = [str(one["text"]["text"]) for one in block.get("elements", [])]
            yield Text("  ".join(f"[ {_readable(label)} ]" for label in labels))
        elif block.get("type") == "header":
            yield Text(_readable(content), "bold")
        elif text.get("type") == "mrkdwn":
            yield Text()
            yield mrkdwn(content)
        else:
            yield Text(_readable(content))
