"""Features: what is added to an attachment whatever its driver. A file's name is the feature's name."""
