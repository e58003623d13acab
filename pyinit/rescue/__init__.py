"""What happens when the boot cannot go on."""
