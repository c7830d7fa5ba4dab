"""Experiment tracking behind one protocol."""
