"""The state made anew from the log: `replay` drives the engine silently, `verify` compares, `switch` replaces."""
