"""DICOM in and out: what segments mean in standard codes, and the objects that hospitals exchange."""
