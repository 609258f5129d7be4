"""Demonstrations of Outrider on real programs; `python -m outrider.demo --help`."""
