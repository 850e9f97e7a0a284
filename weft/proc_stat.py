"""What /proc/PID/stat says of a process."""

from __future__ import annotations


def fields(process: int) -> list[str]:
    """The fields from the third on, the state. Raises OSError for a process that is gone.

    Source: ``proc_pid_stat(5)``.
    """
    with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
