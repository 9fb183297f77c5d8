"""Confidence cascades: images of which a cheap network is unsure are escalated to a more accurate one."""
