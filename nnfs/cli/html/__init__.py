"""The page of `nnfs report`: HTML and SVG in one file, without scripts."""
