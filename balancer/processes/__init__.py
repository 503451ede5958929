"""Child processes that end when we do, and folders that are gone once nobody lives who uses them."""
