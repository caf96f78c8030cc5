"""The compiled operators: one file per op, with its argument checks, fake and autograd."""
