"""Measurements of nnfs: tools/bench makes all of them, tools/bench_fs and others one each."""
