"""Replays one recorded load through engines in this process, to compare policies.

`load` (arrivals and lengths) -> `texts` (token ids) -> `drive` (one run) -> `compare` (all runs) -> `figures`.
"""
