"""Selected samples of any source, written to tars under keys that do not repeat."""
