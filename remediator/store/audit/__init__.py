"""The journal as an audit: sealed in chains, written out, verified."""
