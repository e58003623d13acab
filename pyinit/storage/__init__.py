"""Storage stacks: each makes the devices that the root lies on out of those that appear."""
