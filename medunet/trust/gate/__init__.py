"""What must not leave the house: found, and mended where that is safe."""
