"""How it runs: memory on the GPU, prepared launches, plans in flight, graphs."""
