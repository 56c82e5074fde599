"""Keeping secrets out of what is shown to humans.

Labels, annotations and error texts come from other systems, and some of them carry passwords.
Masking too much is a nuisance; masking too little is an incident of its own.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
_LONGEST = 2_000
"""Characters of one text that are shown; an annotation may be megabytes."""
_READ = 10 * _LONGEST
"""Characters that are searched for secrets: more than is shown, so that no half of one is."""

_NAMES = (
    r"pass(?:word|wd|phrase|code)|pass(?![a-z])|pwd|secret|token|authorization|api[-_. ]?key"
    r"|access[-_. ]?key|private[-_. ]?key|credentials?|cookie|dsn|webhook[-_. ]?url"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_SECRETS = (
    # postgres://user:password@host; greedy, because a password may hold / and @ itself
    (re.compile(r"(://[^\s:/@]{0,200}):\S{1,500}@"), rf"\1:{MASK}@"),
    # password=x, "api_key": "x", token='x y', Authorization: Bearer x
    (
        re.compile(
            rf"""((?:{_NAMES})["']?\s{{0,9}}[=:]\s{{0,9}}(?:(?:bearer|basic|digest)\s{{1,9}})?)"""
            r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\S+)""",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer)\s{1,9}\S+", re.IGNORECASE), rf"\1 {MASK}"),
    # what tokens look like: Slack, GitHub, AWS, Stripe, Google, GitLab, OpenAI, JSON web tokens
    (re.compile(r"\b(?:xox[a-z]|xapp)-[\w-]{8,}"), MASK),
    (re.compile(r"\bgh[a-z]_\w{20,}|\bgithub_pat_\w{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), MASK),
    (re.compile(r"(?<![a-z0-9])(?:[rsp]k_(?:live|test)|whsec)_\w{8,}|\bAIza[\w-]{16,}"), MASK),
    (re.compile(r"\bglpat-[\w-]{8,}|\bsk-[\w-]{20,}"), MASK),
    (re.compile(r"\beyJ[\w-]{8,2000}\.[\w.-]+"), MASK),
    (re.compile(r"(hooks\.slack\.com/)\S+", re.IGNORECASE), rf"\1{MASK}"),
)
"""Every repetition that may have to be tried twice is bounded: texts come from strangers."""


def redact_text(text: str) -> str:
    """Return ``text`` with what looks like a secret masked, cut to what a human would read."""
    shown = text[:_READ]
    for pattern, replacement in _SECRETS:
        shown = pattern.sub(replacement, shown)
    if len(text) <= _LONGEST:
        return shown
    shown = shown[:_LONGEST]
    return f"{shown}… ({len(text) - len(shown)} characters left out)"


def redact(value: Any) -> Any:
    """Return plain data with every string redacted, and masked whole where its key says so."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {key: _redact_entry(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return value


def _redact_entry(key: str, value: Any) -> Any:
    if value and isinstance(value, str | list | tuple | dict) and _SECRET_NAME.search(key):
        return MASK
    return redact(value)
