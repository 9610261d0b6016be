"""What a GPU is: architectures, devices, how many CTAs fit on an SM. Knows nothing of attention."""
