"""Running a plan: devices, the pipeline, simulated TPUs, measuring."""
