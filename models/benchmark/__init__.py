"""Time against multiply-adds: the measurement by which everything here is judged."""
