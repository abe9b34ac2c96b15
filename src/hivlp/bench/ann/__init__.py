"""Our engine beside other libraries' on one thread: `hivlp bench ann`."""
