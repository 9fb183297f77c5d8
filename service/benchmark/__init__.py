"""The load test of `make loadtest`; docs/load.md tells what it measures."""
