"""What the kernel offers, and the only place where system calls are made."""
