"""The post: brings what happens to jobs into their messages, within what Discord allows, each last word once."""
