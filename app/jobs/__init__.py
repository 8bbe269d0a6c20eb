"""Functions behind the commands: one file per command, and the parts that they share.

Only this package uses the root config together with Ray.
"""
