"""The load test of `make loadtest`, which docs/load.md describes."""
