"""What members type: one file for each command, the menus of a message, and the tree that registers them."""
