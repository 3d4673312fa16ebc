"""The Discord front end: an adapter over `Services`. Nothing outside this package imports discord."""
