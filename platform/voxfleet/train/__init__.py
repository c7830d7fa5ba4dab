"""One training step and everything that it needs, without Ray."""
