"""The log: Kafka, or SQLite on the embedded stack. `port` says what both promise."""
