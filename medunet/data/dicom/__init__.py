"""DICOM in and out: scanning, geometry verdicts, label objects and results; all coordinates are RAS mm."""
