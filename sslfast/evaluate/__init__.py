"""Metrics and the baselines that a tuned head is compared with."""
