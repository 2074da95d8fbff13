"""Reading images: decoding, resizing, the image cache, worker processes and batches."""
