"""A folder of recordings to a manifest, a waveform store and folds. Knows no model."""
