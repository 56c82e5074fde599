"""One module a backend; the only place that imports its client library."""
