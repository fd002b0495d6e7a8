"""Files: reading tensors, YAML and JSON, writing atomically, expanding paths."""
