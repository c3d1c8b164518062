"""Methods x tasks x learning rates x seeds, side by side: contenders, plan, runs, statistics, report."""
