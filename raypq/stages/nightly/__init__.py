"""The nightly job: codes and predictions follow a feature store."""
