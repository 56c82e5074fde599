"""CORRELATE and MATCH: from alerts to incidents of a service and a playbook."""
