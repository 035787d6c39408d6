"""A small drawn world with captions, for demonstrations and tests that need no download."""
