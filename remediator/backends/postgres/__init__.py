"""PostgreSQL: reading who is connected, and ending single sessions."""
