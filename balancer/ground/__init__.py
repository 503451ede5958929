"""What every other room stands on: op sets, units, and the few formulas that several rooms need. Imports nothing of ours."""
