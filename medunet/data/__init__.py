"""Grids, readers, dataset index, shared preprocessing, phantoms."""
