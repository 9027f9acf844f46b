"""Behaviour suites that run on every adapter of a port."""
