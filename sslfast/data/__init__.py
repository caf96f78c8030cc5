"""Named data sets, folders and archives of images, and the views that training sees of them."""
