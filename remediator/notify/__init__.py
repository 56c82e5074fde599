"""REPORT: one message an incident, pages, the post-incident report, and who sends them."""
