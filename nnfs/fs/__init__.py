"""What a filesystem means: inodes, names, attributes, chunk map, checking. Synchronous, without trio or pyfuse3."""
