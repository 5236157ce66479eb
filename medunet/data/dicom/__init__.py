"""DICOM series and label objects: read, checked, placed by geometry."""
