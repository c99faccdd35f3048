"""The client of Redis under asyncio: the same steps and errors as the synchronous one, on the sockets of the loop."""
