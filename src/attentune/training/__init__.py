"""Training: recipes, the one training loop (transformers.Trainer), and the bag-of-words baseline beside it."""
