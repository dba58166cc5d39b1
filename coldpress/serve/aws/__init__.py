"""AWS Lambda: the Runtime API, API Gateway's WebSockets, and metrics in the log."""
