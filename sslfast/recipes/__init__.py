"""Whole jobs made of several stages."""
