"""`outrider serve` in a process of its own."""

import subprocess


def greeting_of(process: subprocess.Popen) -> str:
    """What it prints until it serves, the curl line included; fails with its errors when it ends before."""
    greeting = ""
    while "curl" not in greeting:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        greeting += line
    return greeting
