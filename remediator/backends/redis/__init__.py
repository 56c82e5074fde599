"""Redis, or what speaks its protocol."""
