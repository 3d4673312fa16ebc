"""The slash commands, one file each, the message menus, and the tree that registers them."""
