"""An initramfs whose PID 1 is Python."""

VERSION = "0.1.0"
