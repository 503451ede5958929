"""Making a plan: model, hardware and N in, a plan out, beside other ways to use the same TPUs."""
