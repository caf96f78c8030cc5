"""Training a backbone without labels."""
