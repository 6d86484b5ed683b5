"""Store operations that stages share: runs over shards, versions, models, work ids."""
