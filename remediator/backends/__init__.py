"""One package or module a backend: its client, what it reads, and what it changes."""
