"""The meaning of a filesystem: inodes, names, attributes, chunk map, checks. Synchronous, without trio or pyfuse3."""
