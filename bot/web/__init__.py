"""The chatroom: a web page and an HTTP API over the studio. `bot.web.app` builds it. The studio decides about jobs."""
