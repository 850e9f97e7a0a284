"""CNI's JSON to values and back. Nothing outside this package sees a dict that came from outside."""
