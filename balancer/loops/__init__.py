"""Loops: solve, compile or measure, correct the costs, solve again."""
