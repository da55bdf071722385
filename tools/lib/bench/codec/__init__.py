"""tools/bench_codec: sizes and speeds of all codecs on the same chunks of real files."""
