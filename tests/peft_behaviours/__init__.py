"""What peft checks of its own methods, checked of ours: its suite's generic behaviours, on tiny random models."""
