"""The page of a run: one HTML file with tables, figures, and the training images behind every query."""
