"""What a script's process may do: its limits, folder, files, privileges and system calls."""

# Numbers of system calls stand here rather than in packages, looked at in November 2026: pyseccomp 0.1.2, the newest,
# is of 2021 and needs the C library libseccomp on the machine, as new as the calls that it is to refuse. landlock
# 1.0.0.dev5, of 2025, restricts files, but neither TCP (version 4 of the kernel's interface) nor signals (version 6).
