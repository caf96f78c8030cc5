"""The search for a classifier head on stored features."""
