"""Confidence cascades: images that a cheap network is unsure of go on to a more accurate one."""
