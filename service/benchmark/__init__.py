"""The load test of `make loadtest`; docs/load.md describes it."""
