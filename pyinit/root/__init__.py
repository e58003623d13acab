"""Finding, mounting and checking the root file system."""
