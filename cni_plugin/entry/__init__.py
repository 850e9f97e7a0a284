"""How weft is called: by CNI, by netavark, and what bin/setup and the wheel put in a runtime's folder."""
