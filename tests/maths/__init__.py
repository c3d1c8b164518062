"""Every pure function of the methods against a slow reference: the paper's formula in loops over Python numbers."""
