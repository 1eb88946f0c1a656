"""Comparisons of two things in one run, printed as ratios."""
