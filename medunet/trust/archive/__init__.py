"""Bundles as files: a canonical archive, its manifest, weights, signatures; verified and unpacked."""
