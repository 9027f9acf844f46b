"""What stands in Redis: `keys` names it, `shards` and `identity` write it, `reader` reads it."""
