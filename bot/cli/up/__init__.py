"""`darkroom up`: broker, engine and chatroom in one."""
