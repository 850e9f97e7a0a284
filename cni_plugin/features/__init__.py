"""Features: what an attachment gets in addition to its driver. The file name is the feature's name."""
