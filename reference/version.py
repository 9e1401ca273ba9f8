"""The version of the package, said here and nowhere else."""

VERSION = "0.1.0"
