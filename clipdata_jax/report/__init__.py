"""The page that shows what a selection keeps and drops: arrays and samples in, one HTML file out."""
