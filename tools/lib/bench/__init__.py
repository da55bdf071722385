"""What the commands tools/bench* and tools/demo measure with; `fs` is tools/bench_fs, the others have their names."""
