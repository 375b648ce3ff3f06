"""The command line: one module for each command, thin above `throughtime.tasks`.

Heavy imports wait until a command runs.
"""
