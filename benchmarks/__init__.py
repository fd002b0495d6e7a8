"""Measurements behind the numbers in the documents. Results are stored in `benchmarks/results/`."""
