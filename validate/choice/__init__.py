"""Choose among quantizations: those that none beats, and the smallest one that passes."""
