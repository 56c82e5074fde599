"""RECEIVE and NORMALISE: from bytes on a socket to stored deliveries and alerts."""
