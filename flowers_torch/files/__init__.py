"""Reading and writing files: atomic writes, safe loading, downloads, the cache folder."""
