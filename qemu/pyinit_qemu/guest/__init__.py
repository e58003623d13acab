"""Programs that run inside the virtual machine; nothing on the host imports them."""
