"""sslfast: compiled kernels for self-supervised learning, and the tool around them."""
