"""Other model servers, each with our decoding and the dense network, in a separate Python environment."""
