"""`podrt tune`: measure this GPU, fit the cost model to it, find out which policies win on it."""
