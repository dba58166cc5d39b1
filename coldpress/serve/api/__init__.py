"""OpenAI's API: what may be asked, how it is answered, and the HTTP server that takes it."""
