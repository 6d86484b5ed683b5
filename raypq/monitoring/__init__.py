"""The end of a run, as its log, a result file and Prometheus get it."""
