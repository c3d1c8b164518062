"""`python -m attentune.cli`, which `accelerate launch -m attentune.cli train ...` runs in every process."""

from attentune.cli import main

main()
