"""Features of a frozen backbone, computed once and stored with checksums."""

from sslfast.features.extraction import extract
from sslfast.features.store import FeatureStore, Verification

__all__ = ["FeatureStore", "Verification", "extract"]
