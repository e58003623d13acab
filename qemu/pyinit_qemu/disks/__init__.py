"""Disk images for virtual machines, made on the host without root, loop devices or mounts."""
