"""What stands in Redis: `keys` names it, `shards` writes it for processors, `identity` indexes it, `reader` reads it."""
