"""Keep the rounded inputs of those sites alone that are faster with them."""
