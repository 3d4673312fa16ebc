"""OpenAI's image API, spoken by the chatroom: names and shapes as in OpenAI's published description of its API."""
