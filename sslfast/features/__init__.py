"""Features of a frozen backbone, computed once and stored with checksums."""
