"""Child processes that end when this process ends, and working folders that are removed once no process uses them."""
