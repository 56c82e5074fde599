"""The playbook author's API: everything that a playbook may import.

The service that runs playbooks is the ``remediator`` command.
"""

from remediator.blocking import Blocker, Blocking, blocking_tree
from remediator.errors import BackendRefused, BackendUnavailable, PermanentError, TemporaryError
from remediator.model import (
    Alert,
    AlertStatus,
    Assessment,
    Duration,
    Finding,
    FindingStatus,
    Incident,
    Item,
    Limits,
    Mitigation,
    Proposal,
    Risk,
    Sample,
    Sense,
    SenseState,
    Target,
    Value,
    Verification,
)
from remediator.playbook import Context, Findings, Matcher, Parameters, Playbook, alertnames
from remediator.pool import PoolSource, PoolUse
from remediator.ports import ConnectionUsage, Endpoint, Metrics, Point, Session, Sessions
from remediator.promql import quote_label

__all__ = [
    "Alert",
    "AlertStatus",
    "Assessment",
    "BackendRefused",
    "BackendUnavailable",
    "Blocker",
    "Blocking",
    "ConnectionUsage",
    "Context",
    "Duration",
    "Endpoint",
    "Finding",
    "FindingStatus",
    "Findings",
    "Incident",
    "Item",
    "Limits",
    "Matcher",
    "Metrics",
    "Mitigation",
    "Parameters",
    "PermanentError",
    "Playbook",
    "Point",
    "PoolSource",
    "PoolUse",
    "Proposal",
    "Risk",
    "Sample",
    "Sense",
    "SenseState",
    "Session",
    "Sessions",
    "Target",
    "TemporaryError",
    "Value",
    "Verification",
    "alertnames",
    "blocking_tree",
    "quote_label",
]
