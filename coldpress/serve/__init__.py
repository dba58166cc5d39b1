"""The runtime in the image: one engine behind OpenAI's HTTP API or AWS Lambda's Runtime API."""
