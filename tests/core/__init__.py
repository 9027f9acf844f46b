"""Tests of the pure core: no clock, no network, nothing started."""
