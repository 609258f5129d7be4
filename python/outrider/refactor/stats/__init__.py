"""Statistics of quality and routing: pure functions over arrays."""
