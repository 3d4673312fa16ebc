"""Jobs as people see them: views, history, where they were delivered."""
