"""Pictures in, training samples out: built-in characters, palettes, sketches, masks and tags."""
