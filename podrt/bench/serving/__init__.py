"""podrt inside engines that serve: speed of whole steps, one module for each engine."""
