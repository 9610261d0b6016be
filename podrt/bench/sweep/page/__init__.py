"""A sweep as one HTML file, to look at and to pass on: its data, its kernels, the page itself."""
