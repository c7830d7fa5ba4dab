"""Measures of image and cohort quality, on arrays."""
