"""Keras's layer lists and weights files: reading, naming and converting them."""
