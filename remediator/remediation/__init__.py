"""DIAGNOSE, DECIDE, ACT and VERIFY: one loop in ``pipeline``, one module a step."""
