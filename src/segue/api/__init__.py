"""The HTTP API: `routes_read` answers from Redis, `routes_events` writes to the log, `stream` pushes changes."""
