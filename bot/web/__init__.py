"""The chatroom: a web page and an HTTP API over the services. `bot.web.app` builds it. The job service decides about
jobs.
"""
