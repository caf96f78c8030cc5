"""ONNX files that hold everything from raw pixels to probabilities."""
