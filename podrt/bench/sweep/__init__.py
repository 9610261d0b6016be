"""Sweeps behind ``podrt explore sweep``: ways to run batches, measured into a file of records."""
