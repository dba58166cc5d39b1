"""From where a model lies to a model that answers: files, addresses, caches, and what is fetched ahead."""
