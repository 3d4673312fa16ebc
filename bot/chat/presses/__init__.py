"""Presses: buttons, forms and reactions on what the bot has shown. Stateless: all that one needs stands in its id."""
