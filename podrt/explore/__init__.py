"""Looking at variants: which there are, their texts, their resources, plans without a GPU."""
