"""Visualization of imitation weights, attention and feature differences."""
