"""A plan's directory: written, compiled, verified. Knows neither solver nor cost model."""
