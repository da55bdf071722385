"""Native kernels: the codecs' inner loops in C, compiled at set-up (`build`), loaded and dispatched (`library`)."""
