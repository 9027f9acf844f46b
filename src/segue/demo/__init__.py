"""The demo: a scripted story and an excerpt of a real incident log, played through the public contract."""
