"""Builds initramfs images: collect, plan, write."""
