"""The head bank's step as a fixed sequence of PyTorch's kernels, which a CUDA graph can hold."""
