"""Batches to try things on: traces, chunked prefill, random tensors, and what is right."""
