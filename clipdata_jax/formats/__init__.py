"""Every file format: read strictly, written deterministically."""
