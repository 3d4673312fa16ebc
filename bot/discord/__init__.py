"""The Discord front end: an adapter over `Studio`. Nothing outside this package imports discord."""
