"""Backbones, heads and the classifier that is made of them; weights that others trained."""

from sslfast.models.architectures import ARCHITECTURES, architecture_names, check_architecture
from sslfast.models.backbone import (
    Backbone,
    architecture_of,
    load_backbone,
    recorded_architecture,
    save_backbone,
)
from sslfast.models.importing import ImportReport
from sslfast.models.preprocess import Preprocess

__all__ = [
    "ARCHITECTURES",
    "Backbone",
    "ImportReport",
    "Preprocess",
    "architecture_names",
    "architecture_of",
    "check_architecture",
    "load_backbone",
    "recorded_architecture",
    "save_backbone",
]
