"""Named data sets, folders and archives of images, and the views that training sees of them."""

from sslfast.data.dataset import Dataset, Skipped, printable
from sslfast.data.loading import load
from sslfast.data.registry import names
from sslfast.data.splitting import check_same_classes, holdout

__all__ = ["Dataset", "Skipped", "check_same_classes", "holdout", "load", "names", "printable"]
