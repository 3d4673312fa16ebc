"""Buttons, selects, forms and reactions on the bot's messages. Stateless: a custom id carries all that one needs."""
