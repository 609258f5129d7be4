"""The Python side of the refactoring of a dense model into a router-decoupled Mixture-of-Experts.

Data sets, task sets, statistics and the quality card; the model work itself is done by the C++ core. Method: the paper
"Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design", arXiv 2410.19123.
"""
