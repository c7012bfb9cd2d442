"""Estimators that train models again, which ``attribution`` cannot."""
