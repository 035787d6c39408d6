"""The processes of a command: how they start, share work, read ahead and stop."""
