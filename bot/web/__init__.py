"""The chatroom: a page and an HTTP API over the studio. `bot.web.app` opens it; nothing here decides about a job."""
