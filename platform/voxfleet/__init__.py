"""Voxfleet."""
