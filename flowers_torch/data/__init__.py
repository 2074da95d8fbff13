"""Photos: one image loader, folders and archives, splits, augmentation, the drawn demo set."""
