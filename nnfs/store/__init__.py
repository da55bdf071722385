"""The LMDB store: records, blocks, free pages. FORMAT.md is normative."""
