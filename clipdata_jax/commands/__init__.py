"""One file a command: opens the inputs, runs the loop, prints the summary."""
