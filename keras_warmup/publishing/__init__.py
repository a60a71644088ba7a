"""Publishes directories and files so that no reader ever sees, and no fault ever leaves, half of one.

In: a directory or file that was built out of sight. Out: the same under its public name, on the disk before it is
visible, or nothing at all.

- `publish.py`: builds a version in a workspace and publishes it under its name.
- `workspace.py`: hidden directories to build in; a lock tells whether their owner lives; dead ones are swept.
- `filesystem.py`: removing, renaming, exchanging and fsync, on local and remote file systems.
"""
