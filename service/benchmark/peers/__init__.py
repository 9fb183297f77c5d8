"""Other servers, each with the dense network behind the decoding of ours; run in an environment of their own."""
