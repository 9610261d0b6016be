"""What is asked: the attention layer, its mask, a batch. Knows nothing of GPUs."""
