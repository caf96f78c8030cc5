"""Every op in plain PyTorch: definition, test oracle and benchmark baseline."""
