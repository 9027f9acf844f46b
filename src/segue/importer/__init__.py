"""Import of files: a declarative mapping (TOML) turns the rows of a CSV or JSONL file into events."""
