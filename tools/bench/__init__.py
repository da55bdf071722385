"""tools/bench_fs: nnfs beside an in-memory pyfuse3 filesystem and the filesystem below, measured in one run."""
