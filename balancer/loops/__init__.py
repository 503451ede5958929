"""Loops that improve a plan: compile or measure it, correct the costs, solve again."""
