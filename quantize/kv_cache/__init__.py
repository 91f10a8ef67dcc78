"""Store the keys and values that a generator keeps between steps in fewer bits."""
