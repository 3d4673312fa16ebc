"""The bot: everything a member meets. Never imports torch or diffusers; of `engine` only `job` and `bus`."""
