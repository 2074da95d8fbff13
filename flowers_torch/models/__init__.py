"""Networks: handwritten and timm's, under one contract; heads, freezing, foreign weights."""
