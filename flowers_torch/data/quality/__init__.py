"""Data quality: inspection of every image, duplicates, the quality report and the exclude list."""
