"""`/settings` and `/moderation`: admins set limits and rules in Discord, by commands and by the cards that they open.

`commands` and `moderation` are the commands; `responses` routes a button, a select or a form to its handler, which
names its verb. `cards` and `texts` say how it looks. Cards keep no state: every card works after any restart.
"""
