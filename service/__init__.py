"""The service: HTTP in front of the networks in `models`."""
