"""A plan's directory: saving a plan, compiling it, verifying it. None of this needs the solver or predicts costs."""
