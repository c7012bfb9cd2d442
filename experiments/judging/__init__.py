"""Scores and measurements in files: reading them, checking them, and the bundles in which they are published."""
