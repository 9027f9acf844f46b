"""The rules that ship with Segue, as data: `default.toml`."""
