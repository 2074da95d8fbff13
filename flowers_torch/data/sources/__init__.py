"""Sources of labeled images: folders, tables, archives, tar shards, arrays and named datasets."""
