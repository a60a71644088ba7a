"""Publishes directories and files completely or not at all.

In: a directory or file that was built in a hidden place. Out: the same under its public name,
written to the disk before it becomes visible. After a failure or a crash readers see the old
version or the new one, never a part of one.

- `publish.py`: builds a version in a workspace and publishes it under its name.
- `workspace.py`: hidden directories to build in. A lock shows whether their owner is alive; those
  of dead owners are swept.
- `versions.py`: paths with `{version}`, and `filepath` templates.
- `filesystem.py`: removing, renaming, exchanging and fsync, on local and remote file systems.
"""
