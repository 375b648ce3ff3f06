"""The training loop: one protocol for tasks, schedules, checkpoints that survive a kill, and distribution.

Import from the modules themselves; this face stays empty so that reading a configuration costs no import of torch.
"""
