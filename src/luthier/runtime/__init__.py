"""The machine under the loop: devices, checkpoints, interrupts."""
