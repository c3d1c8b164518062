"""`attentune compare` on a tiny backbone."""
