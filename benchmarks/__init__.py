"""Measurements of speed and quality, beside the named peers."""

import visrec  # noqa: F401  # before torch, whose threads it tells how to wait
