"""CORRELATE, MATCH and DIAGNOSE: from alerts to an incident with its findings."""
