"""Train, encode, classify, evaluate: one shard in, one result out. No Ray here."""
