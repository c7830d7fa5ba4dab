"""Cohorts, images and shards, without Ray."""
