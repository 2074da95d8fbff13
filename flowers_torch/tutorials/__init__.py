"""The original Keras tutorials: what they printed, and how to reproduce it."""
