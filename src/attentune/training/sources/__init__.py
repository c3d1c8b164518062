"""Source prompts: a library of them, how they come in, and how adapters mix them."""
