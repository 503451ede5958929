"""The one folder that knows the TFLite format: it reads models, cuts them, and writes synthetic ones."""
