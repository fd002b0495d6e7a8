"""Measurements behind the numbers in the documents; results lie in `benchmarks/results/`."""
