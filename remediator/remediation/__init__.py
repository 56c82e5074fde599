"""DECIDE, ACT and VERIFY: from a proposal to one bounded change that is judged."""
