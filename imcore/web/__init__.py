"""The network side: WebSocket, HTTP and the page. Needs the extra `imcore[web]`."""
