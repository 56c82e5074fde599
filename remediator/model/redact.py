"""Text that came from outside, made safe to show: without secrets, on one line, read as written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

MASK = "***"
_LONGEST = 2_000
"""Characters of one text that a message shows; an annotation may be megabytes."""
_READ = 10 * _LONGEST
"""Characters that are searched for secrets: more than is shown, so that no half of one is."""
_DEEPEST = 64
"""Levels of nesting that are looked through; what is deeper is masked whole."""

_NAMES = (
    r"pass(?:word|wd|phrase|code)|pass(?![a-z])|pwd|secret|token|authorization|api[-_. ]?key"
    r"|access[-_. ]?key|private[-_. ]?key|(?:routing|integration|signing)[-_. ]?key|credentials?"
    r"|signature|cookie|dsn|webhook[-_. ]?url"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_REFERENCE = re.compile(r"_(?:file|env)s?$", re.IGNORECASE)
"""Names that say where a secret is, not what it is."""
_SECRETS = (
    # before all others: a whole key, also where its end is missing
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----"
            r"(?:.*?-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|.*)",
            re.DOTALL,
        ),
        MASK,
    ),
    # postgres://user:password@host; greedy, because a password may hold / and @ itself
    (re.compile(r"(://[^\s:/@]{0,200}):\S{1,500}@"), rf"\1:{MASK}@"),
    # password=x, "api_key": "x", token='x y', Authorization: Bearer x
    (
        re.compile(
            rf"""((?:{_NAMES})["']?\s{{0,9}}[=:]\s{{0,9}}(?:(?:bearer|basic|digest)\s{{1,9}})?)"""
            r"""("(?:\\.|[^"\\])*+"|'(?:\\.|[^'\\])*+'|\S+)""",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer)\s{1,9}\S+", re.IGNORECASE), rf"\1 {MASK}"),
    # base64, which is no word: "basic authentication" stays
    (
        re.compile(r"\b((?i:basic))\s{1,9}(?=[a-z+/]{0,500}[A-Z0-9=])[\w.~+/=-]{8,}"),
        rf"\1 {MASK}",
    ),
    # what tokens look like: Slack, GitHub, AWS, Stripe, Google, GitLab, OpenAI, PagerDuty
    (re.compile(r"\b(?:xox[a-z]|xapp)-[\w-]{4,}"), MASK),
    (re.compile(r"\bgh[a-z]_\w{20,}|\bgithub_pat_\w{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), MASK),
    (re.compile(r"(?<![a-z0-9])(?:[rsp]k_(?:live|test)|whsec)_\w{8,}|\bAIza[\w-]{16,}"), MASK),
    (re.compile(r"\bglpat-[\w-]{8,}|\bsk-[\w-]{20,}"), MASK),
    (re.compile(r"\bpd[a-z]{2}\+_[\w+-]{8,}|\bR0[0-9A-Z]{30}\b|(?<![\w+])u\+[\w+-]{18}\b"), MASK),
    # JSON web tokens, also those that were cut; read once, however often one seems to begin
    (re.compile(r"\beyJ[\w.-]{8,}"), MASK),
    (re.compile(r"(hooks\.slack\.com/)\S+", re.IGNORECASE), rf"\1{MASK}"),
)
"""Every repetition that may have to be tried twice is bounded: texts come from strangers."""


def mask_text(text: str) -> str:
    """Return the whole ``text`` with what looks like a secret masked."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def redact_text(text: str) -> str:
    """Return ``text`` with what looks like a secret masked, cut to what a human would read."""
    shown = mask_text(text[:_READ])
    if len(text) <= _LONGEST:
        return shown
    shown = shown[:_LONGEST]
    return f"{shown}… ({len(text) - len(shown)} characters left out)"


def is_secret(name: object) -> bool:
    """Whether what is called ``name`` is a secret."""
    return (
        isinstance(name, str)
        and _SECRET_NAME.search(name) is not None
        and _REFERENCE.search(name) is None
    )


def redact(value: Any, *, whole: bool = False) -> Any:
    """Return plain data with every string redacted, and masked whole where its key says so.

    Texts are cut to what a human would read, or kept ``whole``.
    """
    return _redacted(value, mask_text if whole else redact_text, _DEEPEST)


def _redacted(value: Any, text: Callable[[str], str], levels: int) -> Any:
    if isinstance(value, str):
        return text(value)
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if not levels:
        return MASK
    if not isinstance(value, dict):
        return [_redacted(inner, text, levels - 1) for inner in value]
    return {
        key: MASK
        if inner and is_secret(key) and _can_hold(inner)
        else _redacted(inner, text, levels - 1)
        for key, inner in value.items()
    }


def _can_hold(value: Any) -> bool:
    """Whether a secret could be in it: a number or a date is none."""
    return isinstance(value, str | list | tuple | dict | set | frozenset | bytes)


UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, turn the text round, cannot be seen or cannot be written."""


def one_line(value: object) -> str:
    """Return ``value`` as one line without control, bidirectional and zero-width characters."""
    text = " ".join(str(value).split())
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if unicodedata.category(c) not in UNSEEN)


def flat(value: Any) -> Any:
    """Return plain data with each text of it on one line, also those in the names of mappings."""
    match value:
        case str():
            return one_line(value)
        case dict():
            return {one_line(key): flat(inner) for key, inner in value.items()}
        case list() | tuple():
            return [flat(inner) for inner in value]
        case _:
            return value
