"""The benchmark suite behind ``podrt bench``: suites of cases, contenders, timing, results."""
