"""Image files as upright 8-bit RGB in sRGB, by the same rules for training and serving."""
