"""Coverage-guided fuzzing of what weft parses: ``bin/test fuzz``."""
