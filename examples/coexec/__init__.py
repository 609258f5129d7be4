"""Plain PyTorch programs that the tests, the demo and the benchmarks co-execute unchanged.

Nothing in these modules knows Outrider. Each one has `build(seed, **config) -> Program`.
"""
