"""Task sets: canonical items, the built-in scorer, and the same items as tasks of lm-evaluation-harness."""
