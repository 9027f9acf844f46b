"""Tests of Segue; a package so that figures and benchmarks can use `tests.support`."""
