"""What folders of models hold beside weights: configs, settings of inference, and model cards."""
