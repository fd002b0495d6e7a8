"""Detect objects with a file of `deformdetr export --postprocess`: python onnx_detector.py detector.onnx photo.jpg."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

file, photo = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
stored = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
image = Image.open(photo).convert("RGB")
scale = (stored["short_side"] or min(image.size)) / min(image.size)  # None: images keep their size
small = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
pixels = (np.asarray(small, np.float32) / 255 - stored["image_mean"]) / stored["image_std"]
boxes, scores, labels = session.run(
    ["boxes", "scores", "labels"],
    {
        "images": pixels.transpose(2, 0, 1)[None].astype(np.float32),
        "padding_mask": np.zeros((1, small.height, small.width), bool),
        "image_sizes": np.array([[image.height, image.width]]),  # boxes are in pixels of this size
    },
)
for box, score, label in zip(boxes[0], scores[0], labels[0], strict=True):
    print(f"{stored['names'][label]} {score:.2f} at {box.round().tolist()}")
