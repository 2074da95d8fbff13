"""Train, validation and test splits: how they are drawn, saved, read and extended."""
