"""The pure core: state in, new state and facts out. No clock, no randomness, no network, no logging."""
