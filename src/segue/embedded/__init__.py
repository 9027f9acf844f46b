"""Servers that Segue starts as child processes, so that one command needs no installation."""
