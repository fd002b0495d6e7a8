"""Tasks of maintenance that measure nothing."""
