"""The web page of an agent: what there is, as a drawing and as lists, while it changes."""
