"""What the replicas share besides the store, in Redis."""
