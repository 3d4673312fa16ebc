"""Buttons, selects, forms and reactions on the bot's messages. Stateless: a custom id holds all that a press needs."""
