"""Backbones, heads and the classifier that is made of them."""

from sslfast.models.backbone import ARCHITECTURES, Backbone, Preprocess, architecture_of, load_backbone, save_backbone

__all__ = ["ARCHITECTURES", "Backbone", "Preprocess", "architecture_of", "load_backbone", "save_backbone"]
