"""Who may do what, how much, and whose job is next. Pure: no I/O, no clock of its own."""
