"""What is measured of nnfs: tools/bench for all of it, tools/bench_fs and its like for one thing each."""
