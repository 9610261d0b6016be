"""podrt inside engines and frameworks: one package or module for each."""
