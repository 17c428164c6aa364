"""What a script's process may do: its limits, folder, files, privileges and system calls."""
