"""Judges: what a reconstruction or a sample is worth, in numbers that were checked on controls."""
