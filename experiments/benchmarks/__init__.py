"""Benchmarks: queries, truth and metric, one file each. Truth never imports an estimator."""
