"""REPORT: what is said to humans about an incident."""
