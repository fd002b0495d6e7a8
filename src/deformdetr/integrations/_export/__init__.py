"""Export of models: the graph (`_program`), ONNX files (`_onnx`), their check against the model (`_run`, `_check`).

`_sampling` replaces the operator by standard ones, and `_tensorrt` by the node of TensorRT's plugin.
"""
