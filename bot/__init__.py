"""The bot package: everything but the engine. It imports neither torch nor diffusers, and only the light modules of
`engine`.
"""
