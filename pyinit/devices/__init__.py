"""Devices as udev sees them, and waiting for them."""
