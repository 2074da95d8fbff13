"""Labeled images: sources, quality checks, splits, augmentation and batches."""
