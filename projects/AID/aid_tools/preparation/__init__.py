"""Preparation of datasets, for the scripts in datasets/."""
