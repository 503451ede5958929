"""Making a plan from a model, hardware and a number of TPUs, and comparing it with other ways to use the same TPUs."""
