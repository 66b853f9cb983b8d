"""Pictures and their boxes: datasets, transforms, and the input pipeline."""
