"""The fault suite: what Segue promises, under every fault we can make here. `python -m tests.chaos`, `make chaos`."""
