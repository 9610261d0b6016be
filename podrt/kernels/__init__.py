"""What can run: kernel families, their variants, sources and arguments. Knows no policy."""
