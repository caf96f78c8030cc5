"""Classify images with an ONNX file of sslfast; needs onnxruntime, numpy and pillow only.

python predict_onnx.py model.onnx image.png [more images]
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
for name in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(name)).convert("RGB")
    probabilities, features = session.run(None, {"images": np.asarray(image)[None]})
    best = probabilities[0].argmax()
    print(f"{name}\t{classes[best]}\t{probabilities[0, best]:.6f}")
