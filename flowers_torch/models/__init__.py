"""Networks, handwritten and timm's: building, heads, freezing, and loading weights."""
