"""Tests of `visrec.importers`."""
