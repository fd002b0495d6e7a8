"""Names of PyTorch that it does not document, each with a public fallback that gives the same result."""
