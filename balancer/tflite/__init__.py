"""The only room that knows the TFLite format: reading models, cutting them, and writing synthetic ones."""
