"""The slash commands, files by idea, the message menus, and the tree that registers them."""
