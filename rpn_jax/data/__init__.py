"""Load pictures and boxes: datasets, transforms, and the input pipeline."""
