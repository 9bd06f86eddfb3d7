"""Learners: each holds networks and an optimiser, and knows how to make one update."""
